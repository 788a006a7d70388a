#include "io/template/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/unicode.h"

namespace heed::jinja {

namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         static_cast<unsigned char>(c) >= 0x80;
}

class Lexer {
 public:
  Lexer(const std::string& source, const std::string& name) : name_(name) {
    source_.reserve(source.size());
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        source_ += '\n';
        if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      } else {
        source_ += source[i];
      }
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      size_t open = at_;
      while ((open = source_.find('{', open)) != std::string::npos) {
        if (open + 1 < source_.size() &&
            std::string_view("{%#").find(source_[open + 1]) != std::string_view::npos) {
          break;
        }
        ++open;
      }
      if (open == std::string::npos) {
        add_data(at_, source_.size(), ' ', true);
        break;
      }
      const char kind = source_[open + 1];
      const char sign = open + 2 < source_.size() ? source_[open + 2] : ' ';
      const bool raw = kind == '%' && raw_tag(open, "raw") != std::string::npos;
      add_data(at_, open, sign, kind == '{');
      at_ = open + 2;
      if (kind == '#') {
        const size_t close = source_.find("#}", at_);
        if (close == std::string::npos) fail("a comment is not closed");
        const char last = close > at_ ? source_[close - 1] : ' ';
        line_ += std::count(source_.begin() + open, source_.begin() + close, '\n');
        at_ = close + 2;
        after_tag(last, true);
      } else if (raw) {
        read_raw(open);
      } else {
        if (sign == '-' || sign == '+') ++at_;
        read_tag(kind == '%');
      }
    }
    tokens_.push_back({Type::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("{}: line {}: {}", name_, line_, what);
  }

  // Text before a tag, stripped as the tag's sign says.
  void add_data(size_t from, size_t to, char sign, bool is_output) {
    size_t end = to;
    if (sign == '-') {
      while (end > from && is_space(source_[end - 1])) --end;
    } else if (sign != '+' && !is_output) {
      size_t start = end;
      while (start > from && source_[start - 1] != '\n' && is_space(source_[start - 1])) --start;
      const bool at_line_start = start > from ? source_[start - 1] == '\n' : line_starting_;
      if (at_line_start) end = start;
    }
    if (end > from) tokens_.push_back({Type::kData, source_.substr(from, end - from), line_});
    line_ += std::count(source_.begin() + from, source_.begin() + to, '\n');
    if (to > from) line_starting_ = source_[to - 1] == '\n';
  }

  // Behind a tag's end: `-` eats all white space, a block or comment the line's end.
  void after_tag(char sign, bool trims_newline) {
    line_starting_ = false;
    if (sign == '-') {
      while (at_ < source_.size() && is_space(source_[at_])) {
        line_starting_ = source_[at_] == '\n';
        line_ += source_[at_++] == '\n';
      }
    } else if (trims_newline && sign != '+' && at_ < source_.size() && source_[at_] == '\n') {
      ++at_;
      ++line_;
      line_starting_ = true;
    }
  }

  // The position behind `{% name %}` at `open`, npos if something else stands there.
  size_t raw_tag(size_t open, std::string_view name) const {
    size_t at = open + 2;
    if (at < source_.size() && (source_[at] == '-' || source_[at] == '+')) ++at;
    while (at < source_.size() && is_space(source_[at])) ++at;
    if (source_.compare(at, name.size(), name) != 0) return std::string::npos;
    at += name.size();
    while (at < source_.size() && is_space(source_[at])) ++at;
    if (at < source_.size() && (source_[at] == '-' || source_[at] == '+')) ++at;
    return source_.compare(at, 2, "%}") == 0 ? at + 2 : std::string::npos;
  }

  void read_raw(size_t open) {
    at_ = raw_tag(open, "raw");
    line_ += std::count(source_.begin() + open, source_.begin() + at_, '\n');
    after_tag(source_[at_ - 3], false);
    for (size_t close = at_; (close = source_.find("{%", close)) != std::string::npos; close += 2) {
      const size_t behind = raw_tag(close, "endraw");
      if (behind == std::string::npos) continue;
      add_data(at_, close, source_[close + 2], false);
      at_ = behind;
      after_tag(source_[at_ - 3], true);
      return;
    }
    fail("raw without endraw");
  }

  void read_tag(bool block) {
    tokens_.push_back({block ? Type::kTagBegin : Type::kOutBegin, "", line_});
    const std::string_view end = block ? "%}" : "}}";
    std::string open;  // brackets that are not closed yet
    while (true) {
      while (at_ < source_.size() && is_space(source_[at_])) line_ += source_[at_++] == '\n';
      if (at_ >= source_.size()) fail("a tag is not closed");
      const std::string_view rest = std::string_view(source_).substr(at_);
      if (open.empty()) {
        const bool sign =
            (rest[0] == '-' || (rest[0] == '+' && block)) && rest.substr(1).starts_with(end);
        if (sign || rest.starts_with(end)) {
          tokens_.push_back({block ? Type::kTagEnd : Type::kOutEnd, "", line_});
          at_ += sign ? 3 : 2;
          after_tag(sign ? rest[0] : ' ', block);
          return;
        }
      }
      read_token(rest, open);
    }
  }

  void read_token(std::string_view rest, std::string& open) {
    const char c = rest[0];
    if (is_name_start(c)) {
      size_t n = 1;
      while (n < rest.size() && (is_name_start(rest[n]) || is_digit(rest[n]))) ++n;
      tokens_.push_back({Type::kName, std::string(rest.substr(0, n)), line_});
      at_ += n;
    } else if (is_digit(c)) {
      read_number(rest);
    } else if (c == '"' || c == '\'') {
      read_string(rest);
    } else {
      static constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<="};
      std::string op(1, c);
      for (const std::string_view two : kOperators) {
        if (rest.starts_with(two)) op = two;
      }
      if (std::string_view("+-*/%~[](){}><=.:|,;!").find(c) == std::string_view::npos ||
          op == "!") {
        fail(fmt::format("unexpected character \"{}\"", printable(op)));
      }
      if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
      if (c == ')' || c == ']' || c == '}') {
        if (open.empty() || open.back() != c) fail(fmt::format("unexpected \"{}\"", c));
        open.pop_back();
      }
      tokens_.push_back({Type::kOperator, op, line_});
      at_ += op.size();
    }
  }

  void read_number(std::string_view rest) {
    std::string digits;
    size_t n = 0;
    bool real = false;
    const auto take_digits = [&] {
      while (n < rest.size() && (is_digit(rest[n]) || (rest[n] == '_' && n + 1 < rest.size() &&
                                                       is_digit(rest[n + 1])))) {
        if (rest[n] != '_') digits += rest[n];
        ++n;
      }
    };
    const char kind = rest.size() > 2 && rest[0] == '0' ? static_cast<char>(rest[1] | 0x20) : ' ';
    if (kind == 'x' || kind == 'o' || kind == 'b') {
      while (n < rest.size() &&
             (std::isalnum(static_cast<unsigned char>(rest[n])) || rest[n] == '_')) {
        if (rest[n] != '_') digits += rest[n];
        ++n;
      }
      tokens_.push_back({Type::kInteger, digits, line_});
      at_ += n;
      return;
    }
    take_digits();
    if (n + 1 < rest.size() && rest[n] == '.' && is_digit(rest[n + 1])) {
      real = true;
      digits += rest[n++];
      take_digits();
    }
    if (n < rest.size() && (rest[n] == 'e' || rest[n] == 'E')) {
      size_t m = n + 1;
      if (m < rest.size() && (rest[m] == '+' || rest[m] == '-')) ++m;
      if (m < rest.size() && is_digit(rest[m])) {
        real = true;
        digits += rest.substr(n, m - n);
        n = m;
        take_digits();
      }
    }
    tokens_.push_back({real ? Type::kReal : Type::kInteger, digits, line_});
    at_ += n;
  }

  void read_string(std::string_view rest) {
    const int line = line_;
    std::string text;
    size_t n = 1;
    for (; n < rest.size() && rest[n] != rest[0]; ++n) {
      line_ += rest[n] == '\n';
      if (rest[n] != '\\' || n + 1 >= rest.size()) {
        text += rest[n];
        continue;
      }
      const char e = rest[++n];
      line_ += e == '\n';
      static constexpr std::string_view kEscapes = "nrtabfv0\\'\"";
      static constexpr std::string_view kMeaning("\n\r\t\a\b\f\v\0\\'\"", 11);
      const int digits = e == 'x' ? 2 : e == 'u' ? 4 : e == 'U' ? 8 : 0;
      if (digits) {
        uint32_t code = 0;
        const std::string_view hex = rest.substr(std::min(n + 1, rest.size()), digits);
        const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16);
        if (error != std::errc() || end != hex.data() + digits || code > 0x10FFFF ||
            (code >= 0xD800 && code < 0xE000)) {
          fail(fmt::format("broken escape \\{} in a string", e));
        }
        unicode::append(text, code);
        n += digits;
      } else if (e == '\n') {  // a line that goes on
      } else if (const size_t k = kEscapes.find(e); k != std::string_view::npos) {
        text += kMeaning[k];
      } else {
        text += {'\\', e};
      }
    }
    if (n >= rest.size()) fail("a string is not closed");
    tokens_.push_back({Type::kString, text, line});
    at_ += n + 1;
  }

  std::string source_;
  const std::string& name_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(const std::string& source, const std::string& name) {
  return Lexer(source, name).run();
}

}  // namespace heed::jinja
