#include "io/template/parser.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/describe.h"
#include "io/error.h"
#include "io/template/lexer.h"

namespace heed::jinja {

namespace {

constexpr int kMaxDepth = 150;   // of nested statements and expressions
constexpr int kMaxHeight = 500;  // of the tree

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
    if (name == "call") return parse_call_block();
    if (name == "with") return parse_with();
    if (name == "filter") {
      NodePointer node = make(Kind::kFilterBlock);
      NodePointer filters = parse_block_filters(true);
      push(*node, parse_block("endfilter"));
      push(*node, std::move(filters));
      return node;
    }
    if (name == "generation") return parse_block("endgeneration");
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
    node->negated = skip_name("recursive");
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
    NodePointer filters = is_operator("|") ? parse_block_filters(false) : nullptr;
    push(*node, parse_block("endset"));
    push(*node, std::move(filters));
    return node;
  }

  // From the end of a tag to the end of the one named `end`.
  NodePointer parse_block(std::string_view end) {
    expect(Type::kTagEnd);
    NodePointer body = parse_body({end});
    next();
    expect(Type::kTagEnd);
    return body;
  }

  // The filters that a block's text goes through; `bare`: the first has no "|" before it.
  NodePointer parse_block_filters(bool bare) {
    NodePointer node = make(Kind::kCaptured);
    while (bare || is_operator("|")) {
      if (!bare) next();
      bare = false;
      NodePointer filter = make(Kind::kFilter, expect_name());
      push(*filter, std::move(node));
      if (is_operator("(")) parse_arguments(*filter);
      node = std::move(filter);
    }
    return node;
  }

  NodePointer parse_with() {
    NodePointer node = make(Kind::kWith);
    while (peek().type != Type::kTagEnd) {
      if (!node->named.empty()) expect_operator(",");
      std::string name = expect_name();
      expect_operator("=");
      push_named(*node, std::move(name), parse_expression());
    }
    push(*node, parse_block("endwith"));
    return node;
  }

  NodePointer parse_call_block() {
    NodePointer node = make(Kind::kCallBlock);
    NodePointer body = make(Kind::kMacro, "caller");
    if (is_operator("(")) parse_parameters(*body);
    push(*node, parse_expression());
    if (node->kids[0]->kind != Kind::kCall) fail("a call block needs a call");
    push(*body, parse_macro_body("endcall"));
    push(*node, std::move(body));
    return node;
  }

  // "(a, b=1)"
  void parse_parameters(Node& node) {
    expect_operator("(");
    while (!is_operator(")")) {
      if (!node.named.empty()) expect_operator(",");
      if (is_operator(")")) break;
      std::string parameter = expect_name();
      NodePointer fallback;
      if (skip_operator("=")) fallback = parse_expression();
      push_named(node, std::move(parameter), std::move(fallback));
    }
    expect_operator(")");
  }

  NodePointer parse_macro_body(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    NodePointer body = parse_block(end);
    loops_ = loops;
    return body;
  }

  NodePointer parse_macro() {
    NodePointer node = make(Kind::kMacro);
    node->text = expect_name();
    parse_parameters(*node);
    push(*node, parse_macro_body("endmacro"));
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
    switch (token.type) {
      case Type::kName:
        next();
        if (token.text == "true" || token.text == "True") return literal(Value::boolean(true));
        if (token.text == "false" || token.text == "False") return literal(Value::boolean(false));
        if (token.text == "none" || token.text == "None") return literal(Value::none());
        return make(Kind::kName, token.text);
      case Type::kString: {
        std::string text;
        while (peek().type == Type::kString) text += next().text;
        return literal(Value::text(text));
      }
      case Type::kInteger:
      case Type::kReal:
        next();
        return parse_number(token);
      default:
        break;
    }
    if (skip_operator("(")) {
      if (skip_operator(")")) return make(Kind::kTuple);
      NodePointer node = parse_tuple(true);
      expect_operator(")");
      return node;
    }
    if (is_operator("[") || is_operator("{")) return parse_collection();
    fail("expected an expression, found " + describe(token));
  }

  NodePointer parse_number(const Token& token) {
    const char* start = token.text.data();
    const char* end = start + token.text.size();
    if (token.type == Type::kReal) {
      double value = 0;
      if (std::from_chars(start, end, value).ec == std::errc::result_out_of_range) {
        value = token.text.find("e-") == std::string::npos ? HUGE_VAL : 0.0;
      }
      return literal(Value::real(value));
    }
    int base = 10;
    if (token.text.size() > 2 && token.text[0] == '0') {
      const char kind = static_cast<char>(token.text[1] | 0x20);
      base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
      if (base != 10) start += 2;
    }
    int64_t value = 0;
    const auto read = std::from_chars(start, end, value, base);
    if (read.ec != std::errc() || read.ptr != end) {
      fail("the number " + token.text + " is too large or not a number");
    }
    return literal(Value::integer(value));
  }

  // "[a, b]" or "{a: b}".
  NodePointer parse_collection() {
    const bool list = next().text == "[";
    const std::string_view end = list ? "]" : "}";
    NodePointer node = make(list ? Kind::kList : Kind::kDict);
    while (!is_operator(end)) {
      if (!node->kids.empty()) expect_operator(",");
      if (is_operator(end)) break;
      push(*node, parse_expression());
      if (list) continue;
      expect_operator(":");
      push(*node, parse_expression());
    }
    expect_operator(end);
    return node;
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
      if (is_operator("*") || is_operator("**")) {
        NodePointer spread = make(Kind::kSpread, next().text);
        push(*spread, parse_expression());
        push(node, std::move(spread));
      } else if (peek().type == Type::kName && is_operator("=", 1)) {
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
  return Parser(tokenize(source, name), name).run();
}

}  // namespace heed::jinja
