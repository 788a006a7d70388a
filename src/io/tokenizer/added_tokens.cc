#include "io/tokenizer/added_tokens.h"

#include <algorithm>

#include "io/error.h"
#include "io/tokenizer/unicode.h"

namespace heed::tok {

namespace {

constexpr size_t kMostNodes = size_t{1} << 22;  // of the trie

bool is_word(char32_t c) {
  return c == '_' || unicode::is_letter(c) || unicode::is_number(c) || unicode::is_mark(c);
}

// Start of the last character of `text` (not empty).
size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

}  // namespace

void AddedTokenMatcher::add(std::string spelling, const AddedToken& token) {
  if (spelling.empty()) return;
  if (ends_.size() + spelling.size() > kMostNodes) {
    throw Error("the added tokens of the tokenizer have more than {} bytes; its file is damaged",
                kMostNodes);
  }
  uint32_t node = 0;
  for (const char c : spelling) {
    const uint64_t key = uint64_t{node} << 8 | static_cast<unsigned char>(c);
    const auto [edge, fresh] = edges_.try_emplace(key, static_cast<uint32_t>(ends_.size()));
    if (fresh) ends_.push_back(-1);
    node = edge->second;
  }
  if (ends_[node] >= 0) return;
  ends_[node] = static_cast<int32_t>(tokens_.size());
  first_[static_cast<unsigned char>(spelling[0])] = true;
  tokens_.push_back(token);
}

size_t AddedTokenMatcher::longest(std::string_view text, size_t at, size_t& index) const {
  size_t length = 0;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (ends_[node] >= 0) {
      length = i + 1 - at;
      index = static_cast<size_t>(ends_[node]);
    }
  }
  return length;
}

std::vector<AddedTokenMatcher::Part> AddedTokenMatcher::split(std::string_view text,
                                                              bool parse_special) const {
  std::vector<Part> parts;
  size_t behind = 0;  // everything before it is in `parts`
  if (!tokens_.empty()) {
    for (size_t at = 0; at < text.size();) {
      size_t index = 0;
      const size_t length =
          first_[static_cast<unsigned char>(text[at])] ? longest(text, at, index) : 0;
      if (!length) {
        ++at;
        continue;
      }
      const AddedToken& token = tokens_[index];
      size_t start = at, stop = at + length;
      at = stop;
      if (token.special && !parse_special) continue;
      if (token.single_word) {
        if (start > 0) {
          size_t before = last_character(text.substr(0, start));
          if (is_word(unicode::next(text, before))) continue;
        }
        size_t after = stop;
        if (stop < text.size() && is_word(unicode::next(text, after))) continue;
      }
      if (token.lstrip) {
        while (start > behind) {
          const size_t before = last_character(text.substr(0, start));
          size_t end = before;
          if (before < behind || !unicode::is_whitespace(unicode::next(text, end))) break;
          start = before;
        }
      }
      if (token.rstrip) {
        while (stop < text.size()) {
          size_t end = stop;
          if (!unicode::is_whitespace(unicode::next(text, end))) break;
          stop = end;
        }
      }
      if (start > behind) parts.push_back({text.substr(behind, start - behind), -1});
      parts.push_back({text.substr(start, stop - start), token.id});
      behind = std::max(behind, stop);
    }
  }
  if (behind < text.size()) parts.push_back({text.substr(behind), -1});
  return parts;
}

}  // namespace heed::tok
