// UTF-8 and the character classes that tokenizers ask for, over utf8proc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace heed::unicode {

// Length in bytes (1 to 4) of the valid UTF-8 sequence at the front of `text`; 0 where there is
// none. Then `broken` (if given) is the length of the longest front part that no valid sequence
// continues: what one U+FFFD stands for (Unicode 15, section 3.9, "maximal subpart"), and
// `incomplete` tells whether more bytes could still complete it.
int sequence_length(std::string_view text, int* broken = nullptr, bool* incomplete = nullptr);

bool is_valid(std::string_view text);

// `text` with every maximal broken part replaced by U+FFFD.
std::string to_valid(std::string_view text);

// How many bytes at the end of `text` are the beginning of a sequence that is not complete yet.
size_t incomplete_tail(std::string_view text);

// The code point at byte `at` of valid UTF-8; `at` moves behind it.
inline char32_t next(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  if (first < 0x80) return static_cast<char32_t>(text[at++]);
  if (first < 0xE0 && at + 1 < text.size()) {
    const char32_t c = (first & 0x1Fu) << 6 | (byte(at + 1) & 0x3Fu);
    at += 2;
    return c;
  }
  if (first < 0xF0 && at + 2 < text.size()) {
    const char32_t c = (first & 0x0Fu) << 12 | (byte(at + 1) & 0x3Fu) << 6 | (byte(at + 2) & 0x3Fu);
    at += 3;
    return c;
  }
  if (at + 3 < text.size()) {
    const char32_t c = (first & 0x07u) << 18 | (byte(at + 1) & 0x3Fu) << 12 |
                       (byte(at + 2) & 0x3Fu) << 6 | (byte(at + 3) & 0x3Fu);
    at += 4;
    return c;
  }
  at = text.size();
  return 0xFFFD;
}

void append(std::string& out, char32_t c);

// Marks, control characters and punctuation are those of Hugging Face `tokenizers`, whose tables
// are older than utf8proc's.
bool is_whitespace(char32_t c);            // the property White_Space
bool is_number(char32_t c);                // Nd, Nl, No
bool is_letter(char32_t c);                // L*
bool is_mark(char32_t c);                  // Mn, Mc, Me
bool is_nonspacing_mark(char32_t c);       // Mn
bool is_other(char32_t c);                 // Cc, Cf, Cn, Co, Cs
bool is_punctuation(char32_t c);           // ASCII punctuation and P*
bool is_control(char32_t c);               // Cc, Cf, Co
bool is_chinese(char32_t c);               // the ideograph blocks that BERT sets apart
std::string lower(std::string_view text);  // full mapping, without the final-sigma rule

enum class Form { kNfc, kNfd, kNfkc, kNfkd };
std::string normalize(std::string_view text, Form form);

// Byte offset of the end of the grapheme cluster that starts at `at`.
size_t grapheme_end(std::string_view text, size_t at);

// The reversible byte alphabet of GPT-2: every byte as one printable character (`bytes_to_unicode`
// of github.com/openai/gpt-2, src/encoder.py).
const std::string& byte_to_symbol(unsigned char byte);
int symbol_to_byte(char32_t c);  // -1: not in the alphabet

std::string bytes_to_symbols(std::string_view bytes);
// False where a character is not in the alphabet.
bool symbols_to_bytes(std::string_view symbols, std::string& bytes);

}  // namespace heed::unicode
