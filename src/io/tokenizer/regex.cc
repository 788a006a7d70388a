#define PCRE2_CODE_UNIT_WIDTH 8
#include "io/tokenizer/regex.h"

#include <pcre2.h>

#include "io/describe.h"
#include "io/error.h"

namespace heed {

namespace {

// White_Space, and the word characters of Unicode technical standard 18, as the inside of a class.
constexpr const char* kSpace =
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{"
    "3000}";
constexpr const char* kWord =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"
    "\\x{1f170}-\\x{1f189}";

// What one thread needs to match: room for one match, a stack for the compiled code, limits.
struct MatchScratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, 16 * 1024 * 1024, nullptr);

  MatchScratch() {
    if (!data || !context) throw std::bad_alloc();
    pcre2_set_match_limit(context, 20'000'000);
    pcre2_set_heap_limit(context, 64 * 1024);  // KiB
    if (stack) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchScratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;
};

bool is_hex(std::string_view text) {
  for (const char c : text) {
    if (!((c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'))) return false;
  }
  return true;
}

}  // namespace

std::string translate_pattern(std::string_view p, const std::string& where) {
  std::string out;
  bool in_class = false;
  size_t class_start = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const char c = p[i];
    if (c == '\\' && i + 1 < p.size()) {
      const char e = p[++i];
      const bool space = e == 's' || e == 'S', word = e == 'w' || e == 'W';
      if (space || word) {
        const char* set = space ? kSpace : kWord;
        const bool negated = e == 'S' || e == 'W';
        if (!in_class) {
          out += fmt::format("[{}{}]", negated ? "^" : "", set);
        } else if (!negated) {
          out += set;
        } else {
          out += {'\\', e};  // a class cannot hold a negated list: PCRE2's own, nearly the same
        }
      } else if (e == 'u' && i + 4 < p.size() && is_hex(p.substr(i + 1, 4))) {
        out += fmt::format("\\x{{{}}}", p.substr(i + 1, 4));
        i += 4;
      } else if (e == 'h' || e == 'H') {  // a hexadecimal digit in Oniguruma, a blank in PCRE2
        if (in_class && e == 'H') throw Error("{}: \\H inside a class is not supported", where);
        out += in_class ? "0-9A-Fa-f" : e == 'h' ? "[0-9A-Fa-f]" : "[^0-9A-Fa-f]";
      } else {
        out += {'\\', e};
      }
      continue;
    }
    if (in_class) {
      if (c == '[' && i + 1 < p.size() && p[i + 1] == ':') {
        const size_t close = p.find(":]", i + 2);
        if (close != std::string_view::npos) {
          out += p.substr(i, close + 2 - i);
          i = close + 1;
          continue;
        }
      }
      if (c == '[') {
        throw Error("{}: nested classes in a regular expression are not supported: {}", where,
                    printable(p));
      }
      if (c == '&' && i + 1 < p.size() && p[i + 1] == '&') {
        throw Error("{}: && in a regular expression is not supported: {}", where, printable(p));
      }
      if (c == ']' && i > class_start) in_class = false;
      out += c;
      continue;
    }
    if (c == '[') {
      in_class = true;
      out += c;
      if (i + 1 < p.size() && p[i + 1] == '^') out += p[++i];
      class_start = i + 1;  // a bracket right here is an ordinary character
      continue;
    }
    if (c == '{' && i + 1 < p.size() && p[i + 1] == ',') {
      out += "{0";
      continue;
    }
    out += c;
  }
  return out;
}

Regex::Regex(std::string_view pattern, const std::string& where) : where_(where) {
  const std::string translated = translate_pattern(pattern, where);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (!code) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof(message));
    throw Error("{}: the regular expression {} cannot be read: {} (near character {})", where,
                printable(pattern), reinterpret_cast<const char*>(message), offset);
  }
  code_ =
      std::shared_ptr<void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it matching is slower, not wrong
}

bool Regex::find(std::string_view text, size_t from, size_t& start, size_t& end) const {
  static thread_local MatchScratch scratch;
  const int found = pcre2_match(static_cast<const pcre2_code*>(code_.get()),
                                reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(found, message, sizeof(message));
    throw Error("{}: matching the regular expression failed: {}", where_,
                reinterpret_cast<const char*>(message));
  }
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(scratch.data);
  start = span[0];
  end = span[1];
  if (end < start) end = start;  // \K inside a lookahead
  return true;
}

}  // namespace heed
