#include "io/tokenizer/regex_translate.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/regex_sets.h"
#include "io/tokenizer/unicode.h"

namespace heed {

namespace {

constexpr int kMaxDepth = 200;         // of groups and classes in each other
constexpr int64_t kMaxRepeat = 65535;  // PCRE2's own limit

bool is_digit(char c) { return c >= '0' && c <= '9'; }
int hex_value(char c) {
  const int lower = c | 0x20;
  return is_digit(c) ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// A set of characters: `items` is the inside of a class, `others` are patterns of one character
// each.
struct Set {
  std::string items;
  std::vector<std::string> others;

  void add(const std::string& inside, bool negated) {
    if (!negated) {
      items += inside;
    } else if (inside.starts_with("\\p{") && inside.find('}') + 1 == inside.size()) {
      items += "\\P" + inside.substr(2);
    } else {
      others.push_back("[^" + inside + "]");
    }
  }
};

// A pattern that matches one character of the set, or one that is not in it.
std::string pattern_of(const Set& set, bool negated) {
  if (set.others.empty()) {
    if (set.items.empty()) return negated ? "(?s:.)" : "(?!)";
    return (negated ? "[^" : "[") + set.items + "]";
  }
  std::string all = set.items.empty() ? "" : "[" + set.items + "]";
  for (const std::string& other : set.others) all += (all.empty() ? "" : "|") + other;
  if (negated) return "(?:(?!" + all + ")(?s:.))";
  return set.others.size() == 1 && set.items.empty() ? all : "(?:" + all + ")";
}

Set intersection(const Set& a, const Set& b) {
  return {"", {"(?:(?=" + pattern_of(a, false) + ")" + pattern_of(b, false) + ")"}};
}

struct Options {
  bool caseless = false, dot_takes_all = false, extended = false;
  bool ascii_word = false, ascii_digit = false, ascii_space = false, ascii_posix = false;
};

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : p_(pattern), where_(where) {
    for (size_t i = 0; i + 3 < p_.size() && !named_; ++i) {
      named_ = p_.substr(i, 3) == "(?'" ||
               (p_.substr(i, 3) == "(?<" && p_[i + 3] != '=' && p_[i + 3] != '!');
    }
  }

  std::string run() {
    body(0);
    if (at_ < p_.size()) fail("a group is closed that was not opened");
    return std::move(out_);
  }

 private:
  // The last thing that a quantifier may repeat.
  struct Atom {
    size_t start = std::string::npos;  // in out_; npos: nothing
    bool repeated = false;
    char simple = 0;  // the quantifier, where it is a greedy * + or ?
  };

  [[noreturn]] void fail(const std::string& what) const {
    throw Error("{}: the regular expression {}: {} (near byte {})", where_, printable(p_), what,
                at_);
  }
  char peek(size_t ahead = 0) const { return at_ + ahead < p_.size() ? p_[at_ + ahead] : '\0'; }
  bool more() const { return at_ < p_.size(); }
  bool skip(std::string_view text) {
    if (p_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }
  char32_t character() {
    if (unicode::sequence_length(p_.substr(at_)) == 0) fail("is not UTF-8");
    return unicode::next(p_, at_);
  }
  static void append_code(std::string& out, char32_t c) {
    const bool plain = c >= 0xA1 || is_digit(static_cast<char>(c)) ||
                       (c < 0x80 && hex_value(static_cast<char>(c)) >= 0) ||
                       ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
    if (plain) {
      unicode::append(out, c);
    } else {
      out += fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(c));
    }
  }

  // Alternatives up to the end or a closing parenthesis.
  void body(int depth) {
    if (depth > kMaxDepth) fail("groups are nested too deeply");
    Atom atom;
    std::string closing;  // of options that hold up to the end of the group
    while (more() && peek() != ')') {
      if (options_.extended && skip_layout()) continue;
      if (quantifier(atom)) continue;
      const size_t start = out_.size();
      const char c = peek();
      if (c == '|') {
        ++at_;
        out_ += '|';
        atom = {};
        continue;
      }
      if (c == '(') {
        if (skip("(?#")) {
          skip_comment();
          continue;
        }
        const bool whole = group(depth, closing);
        atom = {whole ? start : std::string::npos};
        continue;
      }
      if (c == '[') {
        ++at_;
        const Class set = read_class(depth + 1);
        out_ += pattern_of(set.set, set.negated);
      } else if (c == '\\') {
        escape();
      } else if (c == '^' || c == '$' || c == '.') {
        ++at_;
        out_ += c;
      } else {
        append_code(out_, character());
      }
      atom = {start};
    }
    out_ += closing;
  }

  // White space and comments between the parts of an extended pattern.
  bool skip_layout() {
    if (peek() == '#') {
      while (more() && peek() != '\n') ++at_;
      return true;
    }
    if (peek() != ' ' && !(peek() >= '\t' && peek() <= '\r')) return false;
    ++at_;
    return true;
  }
  void skip_comment() {
    while (more() && peek() != ')') at_ += peek() == '\\' ? 2 : 1;
    if (!more()) fail("a comment is not closed");
    ++at_;
  }

  // {n}, {n,}, {,m} or {n,m} at `at_`; false where the brace is an ordinary character.
  bool interval(int64_t& low, int64_t& high, bool& fixed) {
    size_t i = at_ + 1;
    const auto number = [&](int64_t& value) {
      const size_t start = i;
      for (value = 0; i < p_.size() && is_digit(p_[i]); ++i) {
        value = std::min<int64_t>(value * 10 + (p_[i] - '0'), 1'000'000);
      }
      return i > start;
    };
    const bool has_low = number(low);
    fixed = i >= p_.size() || p_[i] != ',';
    bool has_high = has_low;
    high = low;
    if (!fixed) {
      ++i;
      has_high = number(high);
      if (!has_high) high = -1;
    }
    if ((!has_low && !has_high) || i >= p_.size() || p_[i] != '}') return false;
    at_ = i + 1;
    if (std::max(low, high) > kMaxRepeat) fail("more than 65535 repetitions");
    return true;
  }

  bool quantifier(Atom& atom) {
    std::string text;
    bool lazy_allowed = true, possessive_allowed = true, possessive = false;
    const char c = peek();
    if (c == '*' || c == '+' || c == '?') {
      ++at_;
      text = c;
    } else {
      int64_t low = 0, high = 0;
      bool fixed = false;
      if (c != '{' || !interval(low, high, fixed)) return false;
      possessive_allowed = false;  // {n,m}+ repeats what {n,m} made, {n}? makes it optional
      possessive = high >= 0 && high < low;
      lazy_allowed = !fixed && !possessive;
      if (possessive) std::swap(low, high);
      text = fixed      ? fmt::format("{{{}}}", low)
             : high < 0 ? fmt::format("{{{},}}", low)
                        : fmt::format("{{{},{}}}", low, high);
    }
    if (atom.start == std::string::npos) fail("there is nothing to repeat");
    if (lazy_allowed && peek() == '?') {
      ++at_;
      text += '?';
    } else if (possessive || (possessive_allowed && peek() == '+')) {
      at_ += possessive ? 0 : 1;
      text += '+';
    }
    const char simple = text.size() == 1 ? text[0] : '\0';
    if (simple && atom.simple) {  // (x*)* is x*, and takes no time that grows with every nesting
      const bool same = simple == atom.simple && simple != '*';
      out_.back() = atom.simple = same ? simple : '*';
      return true;
    }
    if (atom.repeated) {
      out_.insert(atom.start, "(?:");
      out_ += ')';
    }
    out_ += text;
    atom.repeated = true;
    atom.simple = simple;
    return true;
  }

  // From "(" to its ")". False for options alone, whose effect ends with the group around them.
  bool group(int depth, std::string& closing) {
    ++at_;
    const Options before = options_;
    if (peek() == '*') fail("callouts, (*name), are not supported");
    if (!skip("?")) {
      out_ += named_ ? "(?:" : "(";
      groups_ += !named_;
    } else if (!open_group() && !open_options()) {
      closing += ')';
      return false;
    }
    body(depth + 1);
    if (!skip(")")) fail("a group is not closed");
    out_ += ')';
    options_ = before;
    return true;
  }

  // Behind "(?": the kinds of groups that have a sign of their own.
  bool open_group() {
    for (const char* sign : {":", "=", "!", ">", "<=", "<!"}) {
      if (!skip(sign)) continue;
      out_ += std::string("(?") + sign;
      return true;
    }
    if (skip("<") || skip("'")) {
      const char end = p_[at_ - 1] == '<' ? '>' : '\'';
      const std::string name = name_until(end);
      out_ += "(?<" + name + ">";
      ++groups_;
      return true;
    }
    const char c = peek();
    if (c == '~') fail("absent functions, (?~...), are not supported");
    if (c == '{') fail("callouts, (?{...}), are not supported");
    if (c == '(') fail("conditions, (?(...)...), are not supported");
    return false;
  }

  // Options behind "(?", up to ":" (true: a group begins) or ")" (false: they hold to its end).
  bool open_options() {
    bool on = true;
    Options now = options_;
    while (more() && peek() != ':' && peek() != ')') {
      switch (const char c = p_[at_++]) {
        case '-':
          on = false;
          break;
        case 'i':
          now.caseless = on;
          break;
        case 'm':
          now.dot_takes_all = on;
          break;
        case 'x':
          now.extended = on;
          break;
        case 'P':
          now.ascii_posix = on;
          [[fallthrough]];
        case 'W':
          now.ascii_word = on;
          if (c == 'W') break;
          [[fallthrough]];
        case 'D':
          now.ascii_digit = on;
          if (c == 'D') break;
          [[fallthrough]];
        case 'S':
          now.ascii_space = on;
          break;
        case 'C':  // plain groups do not capture: the same to a search
          break;
        default:
          fail(fmt::format("the option \"{}\" of a group is not known or not supported",
                           printable(std::string(1, c))));
      }
    }
    if (!more()) fail("a group is not closed");
    std::string set, unset;
    (now.caseless ? set : unset) += now.caseless == options_.caseless ? "" : "i";
    (now.dot_takes_all ? set : unset) += now.dot_takes_all == options_.dot_takes_all ? "" : "s";
    out_ += "(?" + set + (unset.empty() ? "" : "-" + unset) + ":";
    options_ = now;
    return p_[at_++] == ':';
  }

  std::string name_until(char end) {
    const size_t close = p_.find(end, at_);
    if (close == std::string_view::npos || close == at_) fail("a name is not closed");
    const std::string name(p_.substr(at_, close - at_));
    at_ = close + 1;
    return name;
  }

  // Word characters outside of classes.
  std::string word_items() const {
    return options_.ascii_word ? posix_set("word")->ascii : std::string(kWordItems) + kWordExtras;
  }

  // \w, \d, \s, \h and their negations; false where `e` is none of them.
  bool shorthand(char e, bool in_class, Set& set) const {
    const bool negated = e >= 'A' && e <= 'Z';
    switch (e | 0x20) {
      case 'w':
        set.add(in_class && !options_.ascii_word ? kWordItems : word_items(), negated);
        return true;
      case 'd':
        set.add(options_.ascii_digit ? "0-9" : "\\p{Nd}", negated);
        return true;
      case 's':
        set.add(options_.ascii_space ? posix_set("space")->ascii : kSpaceItems, negated);
        return true;
      case 'h':
        set.add("0-9A-Fa-f", negated);
        return true;
      default:
        return false;
    }
  }

  // "p{...}" or "P{...}" at `at_`; false where `p` is a letter like others (\pL is "pL").
  bool property(bool in_class, Set& set) {
    if ((peek() != 'p' && peek() != 'P') || peek(1) != '{') return false;
    bool negated = peek() == 'P';
    at_ += 2;
    const std::string name = name_until('}');
    std::string items = property_items(name, negated);
    if (items.empty()) {
      fail(fmt::format("the property \"{}\" of characters is not known", printable(name)));
    }
    if (items == kWordItems && !in_class) items = word_items();
    set.add(items, negated);
    return true;
  }

  // An escape outside of classes.
  void escape() {
    ++at_;
    if (!more()) fail("ends with a backslash");
    const char e = peek();
    Set set;
    if (shorthand(e, false, set)) {
      ++at_;
      out_ += pattern_of(set, false);
      return;
    }
    if (property(false, set)) {
      // Alone, a property needs no class.
      const bool one = set.others.empty() && set.items.find('}') + 1 == set.items.size();
      out_ += one ? set.items : pattern_of(set, false);
      return;
    }
    if (assertion(e) || reference(e)) return;
    append_code(out_, code_point());
  }

  // Escapes that stand for places, and for more than one character of a set.
  bool assertion(char e) {
    const std::string word = "[" + word_items() + "]";
    switch (e) {
      case 'b':
        out_ += "(?:(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + "))";
        break;
      case 'B':
        out_ += "(?:(?<=" + word + ")(?=" + word + ")|(?<!" + word + ")(?!" + word + "))";
        break;
      case 'R':
        out_ += "(?>\\r\\n|[\\n-\\r\\x{85}\\x{2028}\\x{2029}])";
        break;
      case 'N':
        out_ += "[^\\n]";
        break;
      case 'O':
        out_ += "(?s:.)";
        break;
      case 'A':
      case 'Z':
      case 'z':
      case 'G':
      case 'K':
      case 'X':
        out_ += {'\\', e};
        break;
      case 'y':
      case 'Y':
        fail("boundaries of text segments, \\y and \\Y, are not supported");
      default:
        return false;
    }
    ++at_;
    return true;
  }

  // \1, \k<name>, \g<name>.
  bool reference(char e) {
    if (e >= '1' && e <= '9') {
      size_t i = at_;
      int number = 0;
      for (; i < p_.size() && is_digit(p_[i]) && number < 1000; ++i) {
        number = number * 10 + (p_[i] - '0');
      }
      if (number > 9 && number > groups_) return false;
      if (named_) fail("groups have names: a reference by number is not allowed");
      at_ = i;
      out_ += fmt::format("\\g{{{}}}", number);
      return true;
    }
    if ((e != 'k' && e != 'g') || (peek(1) != '<' && peek(1) != '\'')) return false;
    const char end = peek(1) == '<' ? '>' : '\'';
    at_ += 2;
    const std::string name = name_until(end);
    if (name.find_first_of("+-", 1) != std::string::npos) {
      fail("references with a level of recursion are not supported");
    }
    const bool number = is_digit(name[0]) || name[0] == '-' || name[0] == '+';
    if (e == 'g') {
      out_ += "\\g<" + name + ">";
    } else {
      out_ += number ? "\\g{" + name + "}" : "\\k<" + name + ">";
    }
    return true;
  }

  // The character that an escape (behind its backslash) or a plain character stands for.
  char32_t code_point() {
    const char e = peek();
    static constexpr std::string_view kNames = "tnrfaev", kCodes = "\t\n\r\f\a\x1B\v";
    if (const size_t i = kNames.find(e); i != std::string_view::npos) {
      ++at_;
      return static_cast<unsigned char>(kCodes[i]);
    }
    if (e >= '0' && e <= '7') return number(8, e == '0' ? 2 + 1 : 3);
    if (e == 'x' || (e == 'o' && peek(1) == '{')) {
      ++at_;
      if (skip("{")) {
        const char32_t code = number(e == 'x' ? 16 : 8, 11);
        if (!skip("}")) fail("\\x{ and \\o{ take one number and a closing brace");
        return code;
      }
      return e == 'x' ? bytes() : U'o';
    }
    if (e == 'u') {
      ++at_;
      for (size_t i = 0; i < 4; ++i) {
        if (hex_value(peek(i)) < 0) fail("\\u takes four hexadecimal digits");
      }
      return number(16, 4);
    }
    if (e == 'c' || (e == 'C' && peek(1) == '-')) {
      at_ += e == 'c' ? 1 : 2;
      if (!more() || peek() == '\\') fail("\\c takes one character");
      return character() & 0x1F;
    }
    if (e == 'M' && peek(1) == '-') fail("\\M- is not supported");
    return character();  // any other one stands for itself
  }

  char32_t number(int base, int digits) {
    uint64_t value = 0;
    for (; digits > 0 && hex_value(peek()) >= 0 && hex_value(peek()) < base; --digits, ++at_) {
      value = value * static_cast<uint64_t>(base) + static_cast<uint64_t>(hex_value(peek()));
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      fail("a code point is out of range");
    }
    return static_cast<char32_t>(value);
  }

  // \xHH behind its x: one byte of a character in UTF-8, those that follow included.
  char32_t bytes() {
    std::string text;
    const auto byte = [&] {
      int value = 0;
      for (int i = 0; i < 2 && hex_value(peek()) >= 0; ++i)
        value = value * 16 + hex_value(p_[at_++]);
      text += static_cast<char>(value);
    };
    byte();
    if (static_cast<unsigned char>(text[0]) < 0x80) return static_cast<unsigned char>(text[0]);
    while (unicode::sequence_length(text) == 0 && text.size() < 4 && skip("\\x")) byte();
    size_t at = 0;
    if (unicode::sequence_length(text) == 0) fail("\\x bytes are not UTF-8; use \\x{...}");
    return unicode::next(text, at);
  }

  struct Class {
    Set set;
    bool negated = false;
  };

  // Behind "[" up to its "]".
  Class read_class(int depth) {
    if (depth > kMaxDepth) fail("classes are nested too deeply");
    Class out;
    out.negated = skip("^");
    std::optional<Set> before;  // what stands before &&
    Set set;
    const size_t first = at_;
    while (true) {
      if (!more()) fail("a class is not closed");
      if (peek() == ']' && !(at_ == first && closes_later())) break;
      if (skip("&&")) {
        before = before ? intersection(*before, set) : set;
        set = {};
      } else if (peek() == '[') {
        if (posix_bracket(set)) continue;
        ++at_;
        const Class inner = read_class(depth + 1);
        if (inner.negated) {
          set.others.push_back(pattern_of(inner.set, true));
        } else {
          set.items += inner.set.items;
          set.others.insert(set.others.end(), inner.set.others.begin(), inner.set.others.end());
        }
      } else {
        class_item(set);
      }
    }
    ++at_;
    if (at_ == first + 1) fail("a class is empty");
    out.set = before ? intersection(*before, set) : std::move(set);
    return out;
  }

  // Is there a closing bracket behind the one at `at_`?
  bool closes_later() const {
    for (size_t i = at_ + 1; i < p_.size(); ++i) {
      if (p_[i] == '\\') {
        ++i;
      } else if (p_[i] == ']') {
        return true;
      }
    }
    return false;
  }

  bool posix_bracket(Set& set) {
    if (peek(1) != ':') return false;
    const size_t close = p_.find(":]", at_ + 2);
    if (close == std::string_view::npos || close - at_ > 20) return false;
    std::string_view name = p_.substr(at_ + 2, close - at_ - 2);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    const PosixSet* named = posix_set(name);
    if (!named) fail(fmt::format("the POSIX bracket \"{}\" is not known", printable(name)));
    const bool ascii = options_.ascii_posix || (name == "word" && options_.ascii_word) ||
                       (name == "digit" && options_.ascii_digit) ||
                       (name == "space" && options_.ascii_space);
    set.add(ascii ? named->ascii : named->unicode, negated != (!ascii && named->complement));
    at_ = close + 2;
    return true;
  }

  // One character, a range of them, or an escape that names a set.
  void class_item(Set& set) {
    if (const std::optional<char32_t> low = class_character(set)) {
      const bool range = peek() == '-' && at_ + 1 < p_.size() && peek(1) != ']' && peek(1) != '[' &&
                         p_.substr(at_ + 1, 2) != "&&";
      const size_t dash = at_;
      if (range) {
        ++at_;
        Set other;
        if (const std::optional<char32_t> high = class_character(other)) {
          if (*high < *low) fail("a range of a class is empty");
          append_code(set.items, *low);
          set.items += '-';
          append_code(set.items, *high);
          return;
        }
        at_ = dash;  // before a set the dash is a character
      }
      append_code(set.items, *low);
      if (range) {
        ++at_;
        set.items += "\\-";
      }
    }
  }

  // The character at `at_` within a class; none where a set was named, which is added.
  std::optional<char32_t> class_character(Set& set) {
    if (peek() != '\\') return character();
    ++at_;
    if (!more()) fail("ends with a backslash");
    const char e = peek();
    if (shorthand(e, true, set)) {
      ++at_;
      return std::nullopt;
    }
    if (property(true, set)) return std::nullopt;
    if (e == 'R' || e == 'X') fail(fmt::format("\\{} cannot stand in a class", e));
    if (e == 'b') {
      ++at_;
      return U'\b';
    }
    return code_point();
  }

  std::string_view p_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
  Options options_;
  bool named_ = false;
  int groups_ = 0;
};

}  // namespace

std::string translate_pattern(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

}  // namespace heed
