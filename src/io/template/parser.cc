#include "io/template/parser.h"

#include <algorithm>
#include <charconv>

#include "io/describe.h"
#include "io/error.h"
#include "io/tokenizer/unicode.h"

namespace heed::jinja {

namespace {

constexpr int kMaxDepth = 150;   // of nested statements and expressions
constexpr int kMaxHeight = 500;  // of the tree

enum class Type {
  kData,
  kTagBegin,
  kTagEnd,
  kOutBegin,
  kOutEnd,
  kName,
  kString,
  kInteger,
  kReal,
  kOperator,
  kEnd
};

struct Token {
  Type type;
  std::string text;
  int line;
};

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

class Parser {
 public:
  Parser(std::vector<Token> tokens, const std::string& name)
      : tokens_(std::move(tokens)), name_(name) {}

  NodePointer run() {
    NodePointer body = parse_body({});
    if (peek().type != Type::kEnd) fail("unexpected end of a block");
    return body;
  }

 private:
  const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token next() {
    const Token token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("{}: line {}: {}", name_, peek().line, what);
  }
  static std::string describe(const Token& token) {
    switch (token.type) {
      case Type::kEnd:
        return "the end of the template";
      case Type::kTagEnd:
      case Type::kOutEnd:
        return "the end of the tag";
      case Type::kData:
        return "text";
      default:
        return "\"" + printable(token.text) + "\"";
    }
  }
  bool is_operator(std::string_view op, size_t ahead = 0) const {
    return peek(ahead).type == Type::kOperator && peek(ahead).text == op;
  }
  bool is_name(std::string_view name, size_t ahead = 0) const {
    return peek(ahead).type == Type::kName && peek(ahead).text == name;
  }
  bool skip_operator(std::string_view op) {
    if (!is_operator(op)) return false;
    next();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!is_name(name)) return false;
    next();
    return true;
  }
  void expect_operator(std::string_view op) {
    if (!skip_operator(op)) fail(fmt::format("expected \"{}\", found {}", op, describe(peek())));
  }
  std::string expect_name() {
    if (peek().type != Type::kName) fail("expected a name, found " + describe(peek()));
    return next().text;
  }
  void expect(Type type) {
    if (peek().type != type) fail("expected the end of the tag, found " + describe(peek()));
    next();
  }
  NodePointer make(Kind kind, std::string text = "") const {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->line = peek().line;
    node->text = std::move(text);
    return node;
  }
  NodePointer literal(Value value) const {
    NodePointer node = make(Kind::kLiteral);
    node->value = std::move(value);
    return node;
  }

  // Chains such as a + b + c make trees that are deep without nesting: their height is limited too.
  void push(Node& parent, NodePointer kid) {
    raise(parent, kid.get());
    parent.kids.push_back(std::move(kid));
  }
  void push_named(Node& parent, std::string name, NodePointer kid) {
    raise(parent, kid.get());
    parent.named.emplace_back(std::move(name), std::move(kid));
  }
  void raise(Node& parent, const Node* kid) const {
    if (kid) parent.height = std::max(parent.height, kid->height + 1);
    if (parent.height > kMaxHeight) fail("an expression is too long");
  }

  struct Depth {
    explicit Depth(Parser& parser) : parser(parser) {
      if (++parser.depth_ > kMaxDepth) parser.fail("nested too deeply");
    }
    ~Depth() { --parser.depth_; }
    Parser& parser;
  };

  // Statements up to a tag named in `ends`, whose name is left unread; to the end without.
  NodePointer parse_body(const std::vector<std::string_view>& ends) {
    const Depth depth(*this);
    NodePointer body = make(Kind::kBody);
    while (true) {
      const Token& token = peek();
      if (token.type == Type::kData) {
        push(*body, make(Kind::kText, token.text));
        next();
      } else if (token.type == Type::kOutBegin) {
        next();
        NodePointer node = make(Kind::kOutput);
        push(*node, parse_tuple(true));
        expect(Type::kOutEnd);
        push(*body, std::move(node));
      } else if (token.type == Type::kTagBegin) {
        for (const std::string_view end : ends) {
          if (is_name(end, 1)) {
            next();
            return body;
          }
        }
        next();
        push(*body, parse_statement());
      } else {
        if (!ends.empty()) {
          fail(fmt::format("expected {}, found {}", ends.back(), describe(token)));
        }
        return body;
      }
    }
  }

  NodePointer parse_statement() {
    const std::string name = expect_name();
    if (name == "for") return parse_for();
    if (name == "if") return parse_if();
    if (name == "set") return parse_set();
    if (name == "macro") return parse_macro();
    if (name == "generation") {
      expect(Type::kTagEnd);
      NodePointer body = parse_body({"endgeneration"});
      next();
      expect(Type::kTagEnd);
      return body;
    }
    if (name == "break" || name == "continue") {
      if (!loops_) fail(name + " outside of a loop");
      NodePointer node = make(name == "break" ? Kind::kBreak : Kind::kContinue);
      expect(Type::kTagEnd);
      return node;
    }
    fail(fmt::format("the statement \"{}\" is not supported", printable(name)));
  }

  // `a`, `a, b` or `(a, b)`, joined by commas.
  std::string parse_targets() {
    const bool parenthesis = skip_operator("(");
    std::string targets = expect_name();
    while (skip_operator(",")) {
      if (is_name("in") || is_operator("=") || is_operator(")")) break;
      targets += "," + expect_name();
    }
    if (parenthesis) expect_operator(")");
    return targets;
  }

  NodePointer parse_for() {
    NodePointer node = make(Kind::kFor);
    node->text = parse_targets();
    if (!skip_name("in")) fail("expected \"in\", found " + describe(peek()));
    push(*node, parse_tuple(false));
    NodePointer condition;
    if (skip_name("if")) condition = parse_expression();
    if (is_name("recursive")) fail("recursive loops are not supported");
    expect(Type::kTagEnd);
    ++loops_;
    push(*node, parse_body({"else", "endfor"}));
    --loops_;
    NodePointer otherwise;
    if (next().text == "else") {
      expect(Type::kTagEnd);
      otherwise = parse_body({"endfor"});
      next();
    }
    expect(Type::kTagEnd);
    push(*node, std::move(otherwise));
    push(*node, std::move(condition));
    return node;
  }

  NodePointer parse_if() {
    const Depth depth(*this);
    NodePointer node = make(Kind::kIf);
    push(*node, parse_tuple(false));
    expect(Type::kTagEnd);
    push(*node, parse_body({"elif", "else", "endif"}));
    const std::string end = next().text;
    if (end == "elif") {  // an if of its own, which reads up to the common endif
      push(*node, parse_if());
      return node;
    }
    NodePointer otherwise;
    if (end == "else") {
      expect(Type::kTagEnd);
      otherwise = parse_body({"endif"});
      next();
    }
    expect(Type::kTagEnd);
    push(*node, std::move(otherwise));
    return node;
  }

  NodePointer parse_set() {
    NodePointer node = make(Kind::kSet);
    if (is_operator(".", 1)) {
      node->text = expect_name();
      next();
      node->attribute = expect_name();
    } else {
      node->text = parse_targets();
    }
    if (skip_operator("=")) {
      push(*node, parse_tuple(true));
      expect(Type::kTagEnd);
      return node;
    }
    node->kind = Kind::kSetBlock;
    if (node->text.find(',') != std::string::npos || !node->attribute.empty()) {
      fail("a block can be set to one name only");
    }
    if (is_operator("|")) fail("filters of a set block are not supported");
    expect(Type::kTagEnd);
    push(*node, parse_body({"endset"}));
    next();
    expect(Type::kTagEnd);
    return node;
  }

  NodePointer parse_macro() {
    NodePointer node = make(Kind::kMacro);
    node->text = expect_name();
    expect_operator("(");
    while (!is_operator(")")) {
      if (!node->named.empty()) expect_operator(",");
      if (is_operator(")")) break;
      std::string parameter = expect_name();
      NodePointer fallback;
      if (skip_operator("=")) fallback = parse_expression();
      push_named(*node, std::move(parameter), std::move(fallback));
    }
    expect_operator(")");
    expect(Type::kTagEnd);
    const int loops = std::exchange(loops_, 0);
    push(*node, parse_body({"endmacro"}));
    loops_ = loops;
    next();
    expect(Type::kTagEnd);
    return node;
  }

  // One expression or several with commas between, which make a tuple.
  NodePointer parse_tuple(bool with_ternary) {
    const auto one = [&] { return with_ternary ? parse_expression() : parse_or(); };
    NodePointer first = one();
    if (!is_operator(",")) return first;
    NodePointer tuple = make(Kind::kTuple);
    push(*tuple, std::move(first));
    while (skip_operator(",")) {
      const Type type = peek().type;
      if (type == Type::kTagEnd || type == Type::kOutEnd || is_operator(")")) break;
      push(*tuple, one());
    }
    return tuple;
  }

  NodePointer parse_expression() {
    const Depth depth(*this);
    NodePointer node = parse_or();
    while (skip_name("if")) {
      NodePointer ternary = make(Kind::kTernary);
      push(*ternary, parse_or());
      push(*ternary, std::move(node));
      push(*ternary, skip_name("else") ? parse_expression() : nullptr);
      node = std::move(ternary);
    }
    return node;
  }

  NodePointer binary(const std::string& op, NodePointer left, NodePointer right) {
    NodePointer node = make(Kind::kBinary, op);
    push(*node, std::move(left));
    push(*node, std::move(right));
    return node;
  }
  NodePointer unary(const std::string& op, NodePointer operand) {
    NodePointer node = make(Kind::kUnary, op);
    push(*node, std::move(operand));
    return node;
  }
  template <typename Operand>
  NodePointer chain(Operand&& operand, std::initializer_list<std::string_view> operators) {
    NodePointer left = operand();
    while (true) {
      const Token& token = peek();
      const bool fits = std::any_of(operators.begin(), operators.end(), [&](std::string_view op) {
        return is_operator(op) || ((op == "and" || op == "or") && is_name(op));
      });
      if (!fits) return left;
      const std::string op = token.text;
      next();
      left = binary(op, std::move(left), operand());
    }
  }

  NodePointer parse_or() {
    return chain([&] { return parse_and(); }, {"or"});
  }
  NodePointer parse_and() {
    return chain([&] { return parse_not(); }, {"and"});
  }
  NodePointer parse_not() {
    const Depth depth(*this);
    return skip_name("not") ? unary("not", parse_not()) : parse_compare();
  }
  NodePointer parse_compare() {
    NodePointer first = parse_sum();
    NodePointer node;
    while (true) {
      std::string op;
      for (const std::string_view candidate : {"==", "!=", "<=", ">=", "<", ">"}) {
        if (op.empty() && is_operator(candidate)) op = candidate;
      }
      if (is_name("in")) op = "in";
      if (is_name("not") && is_name("in", 1)) {
        op = "not in";
        next();
      }
      if (op.empty()) return node ? std::move(node) : std::move(first);
      next();
      if (!node) {
        node = make(Kind::kCompare);
        push(*node, std::move(first));
      } else {
        node->text += ',';
      }
      node->text += op;
      push(*node, parse_sum());
    }
  }
  NodePointer parse_sum() {
    return chain([&] { return parse_concatenation(); }, {"+", "-"});
  }
  NodePointer parse_concatenation() {
    return chain([&] { return parse_product(); }, {"~"});
  }
  NodePointer parse_product() {
    return chain([&] { return parse_power(); }, {"*", "/", "//", "%"});
  }
  NodePointer parse_power() {
    return chain([&] { return parse_unary(true); }, {"**"});
  }
  NodePointer parse_unary(bool with_filter) {
    const Depth depth(*this);
    NodePointer node;
    if (is_operator("-") || is_operator("+")) {
      const std::string op = next().text;
      node = unary(op, parse_unary(false));
    } else {
      node = parse_primary();
    }
    node = parse_postfix(std::move(node));
    return with_filter ? parse_filters(std::move(node)) : std::move(node);
  }

  NodePointer parse_primary() {
    const Depth depth(*this);
    const Token token = peek();
    if (token.type == Type::kName) {
      next();
      if (token.text == "true" || token.text == "True") return literal(Value::boolean(true));
      if (token.text == "false" || token.text == "False") return literal(Value::boolean(false));
      if (token.text == "none" || token.text == "None") return literal(Value::none());
      return make(Kind::kName, token.text);
    }
    if (token.type == Type::kString) {
      std::string text;
      while (peek().type == Type::kString) text += next().text;
      return literal(Value::text(text));
    }
    if (token.type == Type::kInteger) {
      next();
      int64_t value = 0;
      const char* end = token.text.data() + token.text.size();
      if (std::from_chars(token.text.data(), end, value).ec != std::errc()) {
        fail("the number " + token.text + " is too large");
      }
      return literal(Value::integer(value));
    }
    if (token.type == Type::kReal) {
      next();
      double value = 0;
      std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
      return literal(Value::real(value));
    }
    if (skip_operator("(")) {
      if (skip_operator(")")) return make(Kind::kTuple);
      NodePointer node = parse_tuple(true);
      expect_operator(")");
      return node;
    }
    if (skip_operator("[")) {
      NodePointer node = make(Kind::kList);
      while (!is_operator("]")) {
        if (!node->kids.empty()) expect_operator(",");
        if (is_operator("]")) break;
        push(*node, parse_expression());
      }
      expect_operator("]");
      return node;
    }
    if (skip_operator("{")) {
      NodePointer node = make(Kind::kDict);
      while (!is_operator("}")) {
        if (!node->kids.empty()) expect_operator(",");
        if (is_operator("}")) break;
        push(*node, parse_expression());
        expect_operator(":");
        push(*node, parse_expression());
      }
      expect_operator("}");
      return node;
    }
    fail("expected an expression, found " + describe(token));
  }

  NodePointer parse_postfix(NodePointer node) {
    while (true) {
      if (skip_operator(".")) {
        if (peek().type == Type::kInteger) {
          node = item(std::move(node), parse_primary());
        } else {
          NodePointer attribute = make(Kind::kAttribute, expect_name());
          push(*attribute, std::move(node));
          node = std::move(attribute);
        }
      } else if (skip_operator("[")) {
        node = parse_subscript(std::move(node));
      } else if (is_operator("(")) {
        node = parse_call(std::move(node));
      } else {
        return node;
      }
    }
  }

  NodePointer item(NodePointer object, NodePointer index) {
    NodePointer node = make(Kind::kItem);
    push(*node, std::move(object));
    push(*node, std::move(index));
    return node;
  }

  NodePointer parse_subscript(NodePointer object) {
    NodePointer parts[3];
    int colons = 0;
    while (!is_operator("]")) {
      if (is_operator(":") && colons < 2) {
        next();
        ++colons;
      } else if (!parts[colons]) {
        parts[colons] = parse_expression();
      } else {
        fail("expected \"]\", found " + describe(peek()));
      }
    }
    expect_operator("]");
    if (colons == 0) {
      if (!parts[0]) fail("an empty subscript");
      return item(std::move(object), std::move(parts[0]));
    }
    NodePointer node = make(Kind::kSlice);
    push(*node, std::move(object));
    for (NodePointer& part : parts) push(*node, std::move(part));
    return node;
  }

  void parse_arguments(Node& node) {
    expect_operator("(");
    for (bool first = true; !is_operator(")"); first = false) {
      if (!first) expect_operator(",");
      if (is_operator(")")) break;
      if (is_operator("*") || is_operator("**")) fail("* and ** in calls are not supported");
      if (peek().type == Type::kName && is_operator("=", 1)) {
        std::string name = next().text;
        next();
        push_named(node, std::move(name), parse_expression());
      } else {
        if (!node.named.empty()) fail("an argument without a name behind one with a name");
        push(node, parse_expression());
      }
    }
    expect_operator(")");
  }

  NodePointer parse_call(NodePointer callee) {
    NodePointer node = make(Kind::kCall);
    push(*node, std::move(callee));
    parse_arguments(*node);
    return node;
  }

  NodePointer parse_filters(NodePointer node) {
    while (true) {
      if (skip_operator("|")) {
        NodePointer filter = make(Kind::kFilter, expect_name());
        push(*filter, std::move(node));
        if (is_operator("(")) parse_arguments(*filter);
        node = std::move(filter);
      } else if (is_name("is")) {
        node = parse_test(std::move(node));
      } else if (is_operator("(")) {
        node = parse_call(std::move(node));
      } else {
        return node;
      }
    }
  }

  NodePointer parse_test(NodePointer input) {
    next();
    const bool negated = skip_name("not");
    NodePointer node = make(Kind::kTest, expect_name());
    node->negated = negated;
    push(*node, std::move(input));
    const Type type = peek().type;
    if (is_operator("(")) {
      parse_arguments(*node);
    } else if (type == Type::kString || type == Type::kInteger || type == Type::kReal ||
               is_operator("[") || is_operator("{") ||
               (type == Type::kName && !is_name("else") && !is_name("or") && !is_name("and"))) {
      if (is_name("is")) fail("tests cannot be chained with \"is\"");
      push(*node, parse_postfix(parse_primary()));
    }
    return node;
  }

  std::vector<Token> tokens_;
  const std::string& name_;
  size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
};

}  // namespace

NodePointer parse(const std::string& source, const std::string& name) {
  return Parser(Lexer(source, name).run(), name).run();
}

}  // namespace heed::jinja
