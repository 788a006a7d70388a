// Regular expressions of tokenizer files, on PCRE2 with its just-in-time compiler.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace heed {

// One compiled pattern; immutable, may be used by many threads at once.
//
// Tokenizer files are written for Oniguruma; regex_translate.h says what is translated and what is
// refused.
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

}  // namespace heed
