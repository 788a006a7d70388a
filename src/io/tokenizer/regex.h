// Regular expressions of tokenizer files, on PCRE2 with its just-in-time compiler.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace heed {

// One compiled pattern; immutable, may be used by many threads at once.
//
// Tokenizer files are written for Oniguruma or Rust's regex; the differences that real tokenizers
// use are translated: \s, \w and their negations mean the Unicode properties, {,n} counts from
// zero, \uXXXX is a code point, ^ and $ match at lines. Set operations inside classes (&&, nested
// brackets) are an error that names them.
class Regex {
 public:
  // `where` names the file and key for messages.
  Regex(std::string_view pattern, const std::string& where);

  // The first match in `text` (valid UTF-8) that starts at `from` or later. Lookbehind sees the
  // text before `from`. Throws Error where the pattern needs more steps than the limit.
  bool find(std::string_view text, size_t from, size_t& start, size_t& end) const;

 private:
  std::shared_ptr<void> code_;
  std::string where_;
};

// The pattern in PCRE2's syntax.
std::string translate_pattern(std::string_view pattern, const std::string& where);

}  // namespace heed
