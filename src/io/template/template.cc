#include "io/template/template.h"

#include <algorithm>
#include <cmath>

#include "io/describe.h"
#include "io/error.h"
#include "io/template/interpreter.h"
#include "io/template/parser.h"
#include "io/tokenizer/unicode.h"

namespace heed {

namespace jinja {

namespace {

constexpr int kMaxCalls = 60;  // of macros inside macros

struct Scope;
using ScopePointer = std::shared_ptr<Scope>;

struct Scope {
  std::vector<std::pair<std::string, Value>> variables;
  ScopePointer parent;

  const Value* find(std::string_view name) const {
    for (const Scope* scope = this; scope; scope = scope->parent.get()) {
      for (const auto& [key, value] : scope->variables) {
        if (key == name) return &value;
      }
    }
    return nullptr;
  }
  void set(const std::string& name, Value value) {
    for (auto& [key, old] : variables) {
      if (key == name) {
        old = std::move(value);
        return;
      }
    }
    variables.emplace_back(name, std::move(value));
  }
};

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> parts;
  size_t at = 0;
  for (size_t comma; (comma = text.find(',', at)) != std::string::npos; at = comma + 1) {
    parts.push_back(text.substr(at, comma - at));
  }
  parts.push_back(text.substr(at));
  return parts;
}

enum class Flow { kNormal, kBreak, kContinue };

class Interpreter {
 public:
  explicit Interpreter(const ChatOptions& options) : machine_{options} {
    root_ = new_scope(nullptr);
  }
  // Macros hold the scope that holds them, namespaces may hold each other: let go of all of them.
  ~Interpreter() {
    for (const auto& weak : scopes_) {
      if (const ScopePointer scope = weak.lock()) scope->variables.clear();
    }
    for (const Value& space : namespaces_) space.as_dict().entries.clear();
  }
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  Scope& root() { return *root_; }

  std::string render(const Node& body) {
    std::string out;
    run(body, root_, out);
    return out;
  }

 private:
  ScopePointer new_scope(ScopePointer parent) {
    auto scope = std::make_shared<Scope>();
    scope->parent = std::move(parent);
    return scope;
  }

  void append(std::string& out, std::string_view text) {
    machine_.charge(static_cast<int64_t>(text.size()));
    out += text;
  }

  Flow run(const Node& node, const ScopePointer& scope, std::string& out) {
    machine_.line = node.line;
    machine_.charge();
    switch (node.kind) {
      case Kind::kBody:
        for (const NodePointer& kid : node.kids) {
          const Flow flow = run(*kid, scope, out);
          if (flow != Flow::kNormal) return flow;
        }
        return Flow::kNormal;
      case Kind::kText:
        append(out, node.text);
        return Flow::kNormal;
      case Kind::kOutput:
        append(out, evaluate(*node.kids[0], scope).str());
        return Flow::kNormal;
      case Kind::kIf: {
        const bool truth = evaluate(*node.kids[0], scope).truth();
        if (truth) return run(*node.kids[1], scope, out);
        const Node* otherwise = node.kids[2].get();
        return otherwise ? run(*otherwise, scope, out) : Flow::kNormal;
      }
      case Kind::kFor:
        return run_for(node, scope, out);
      case Kind::kSet:
        assign(node, scope, evaluate(*node.kids[0], scope));
        return Flow::kNormal;
      case Kind::kSetBlock: {
        std::string text;
        run(*node.kids[0], new_scope(scope), text);
        scope->set(node.text, machine_.text(std::move(text)));
        return Flow::kNormal;
      }
      case Kind::kMacro:
        define_macro(node, scope);
        return Flow::kNormal;
      case Kind::kBreak:
        return Flow::kBreak;
      case Kind::kContinue:
        return Flow::kContinue;
      default:
        machine_.fail("not a statement");
    }
  }

  void bind(const std::vector<std::string>& targets, const Value& value, Scope& scope) {
    if (targets.size() == 1) return scope.set(targets[0], value);
    const List items = iterate(machine_, value);
    if (items.size() != targets.size()) {
      machine_.fail(
          fmt::format("cannot unpack {} values into {} names", items.size(), targets.size()));
    }
    for (size_t i = 0; i < targets.size(); ++i) scope.set(targets[i], items[i]);
  }

  void assign(const Node& node, const ScopePointer& scope, const Value& value) {
    if (node.attribute.empty()) return bind(split_commas(node.text), value, *scope);
    const Value* space = scope->find(node.text);
    if (!space || !space->is_dict() || !space->as_dict().is_namespace) {
      machine_.fail(fmt::format("cannot set {}.{}: \"{}\" is not a namespace", node.text,
                                node.attribute, node.text));
    }
    space->as_dict().set(node.attribute, value);
    machine_.charge(static_cast<int64_t>(space->as_dict().entries.size()));
  }

  Flow run_for(const Node& node, const ScopePointer& scope, std::string& out) {
    const std::vector<std::string> targets = split_commas(node.text);
    List items = iterate(machine_, evaluate(*node.kids[0], scope));
    if (const Node* condition = node.kids[3].get()) {
      List kept;
      for (Value& value : items) {
        const ScopePointer inner = new_scope(scope);
        bind(targets, value, *inner);
        if (evaluate(*condition, inner).truth()) kept.push_back(std::move(value));
      }
      items = std::move(kept);
    }
    if (items.empty()) {
      return node.kids[2] ? run(*node.kids[2], new_scope(scope), out) : Flow::kNormal;
    }
    const int64_t count = static_cast<int64_t>(items.size());
    ++loops_;
    for (int64_t i = 0; i < count; ++i) {
      const ScopePointer inner = new_scope(scope);
      bind(targets, items[i], *inner);
      inner->set("loop", loop_variable(items, i));
      const Flow flow = run(*node.kids[1], inner, out);
      if (flow == Flow::kBreak) break;
    }
    --loops_;
    return Flow::kNormal;
  }

  Value loop_variable(const List& items, int64_t i) {
    const int64_t count = static_cast<int64_t>(items.size());
    Dict loop;
    loop.is_namespace = true;
    loop.entries.reserve(13);
    const auto add = [&](const char* key, Value value) {
      loop.entries.emplace_back(key, std::move(value));
    };
    add("index", Value::integer(i + 1));
    add("index0", Value::integer(i));
    add("first", Value::boolean(i == 0));
    add("last", Value::boolean(i + 1 == count));
    add("length", Value::integer(count));
    add("revindex", Value::integer(count - i));
    add("revindex0", Value::integer(count - i - 1));
    add("depth", Value::integer(loops_));
    add("depth0", Value::integer(loops_ - 1));
    if (i > 0) add("previtem", items[i - 1]);
    if (i + 1 < count) add("nextitem", items[i + 1]);
    Machine* machine = &machine_;
    add("cycle", Value::function([machine, i](const Arguments& a) {
          if (a.list.empty()) machine->fail("loop.cycle() without values");
          return a.list[i % a.list.size()];
        }));
    return Value::dict(std::move(loop));
  }

  void define_macro(const Node& node, const ScopePointer& scope) {
    scopes_.push_back(scope);
    scope->set(
        node.text, Value::function([this, &node, scope](const Arguments& arguments) {
          if (++calls_ > kMaxCalls) machine_.fail("macros call each other too deeply");
          const ScopePointer inner = new_scope(scope);
          if (arguments.list.size() > node.named.size()) {
            machine_.fail(fmt::format("macro \"{}\" takes {} arguments, not {}", node.text,
                                      node.named.size(), arguments.list.size()));
          }
          for (const auto& [name, value] : arguments.named) {
            const bool known =
                std::any_of(node.named.begin(), node.named.end(),
                            [&, &name = name](const auto& p) { return p.first == name; });
            if (!known) {
              machine_.fail(fmt::format("macro \"{}\" has no argument \"{}\"", node.text, name));
            }
            inner->set(name, value);
          }
          for (size_t i = 0; i < node.named.size(); ++i) {
            const auto& [name, fallback] = node.named[i];
            if (i < arguments.list.size()) {
              inner->set(name, arguments.list[i]);
            } else if (std::none_of(inner->variables.begin(), inner->variables.end(),
                                    [&, n = name](const auto& v) { return v.first == n; })) {
              inner->set(name, fallback ? evaluate(*fallback, inner) : Value::undefined(name));
            }
          }
          std::string text;
          const int loops = std::exchange(loops_, 0);
          run(*node.kids[0], inner, text);
          loops_ = loops;
          --calls_;
          return machine_.text(std::move(text));
        }));
  }

  Arguments arguments_of(const Node& node, size_t first, const ScopePointer& scope) {
    Arguments arguments;
    arguments.line = node.line;
    for (size_t i = first; i < node.kids.size(); ++i) {
      arguments.list.push_back(evaluate(*node.kids[i], scope));
    }
    for (const auto& [name, value] : node.named) {
      arguments.named.emplace_back(name, evaluate(*value, scope));
    }
    machine_.line = node.line;
    return arguments;
  }

  Value evaluate(const Node& node, const ScopePointer& scope) {
    machine_.charge();
    machine_.line = node.line;
    const auto kid = [&](size_t i) { return evaluate(*node.kids[i], scope); };
    switch (node.kind) {
      case Kind::kLiteral:
        return node.value;
      case Kind::kName: {
        if (const Value* found = scope->find(node.text)) return *found;
        Value function = global_function(machine_, node.text);
        return function.is_undefined() ? Value::undefined(node.text) : function;
      }
      case Kind::kList:
      case Kind::kTuple: {
        List items;
        for (size_t i = 0; i < node.kids.size(); ++i) items.push_back(kid(i));
        return machine_.list(std::move(items), node.kind == Kind::kTuple);
      }
      case Kind::kDict: {
        Dict dict;
        for (size_t i = 0; i < node.kids.size(); i += 2) {
          const Value key = kid(i);
          if (!key.is_text()) machine_.fail("keys of a mapping must be strings");
          dict.set(key.as_text(), kid(i + 1));
        }
        machine_.charge(static_cast<int64_t>(dict.entries.size() * 64));
        return Value::dict(std::move(dict));
      }
      case Kind::kAttribute:
        return attribute(machine_, kid(0), node.text);
      case Kind::kItem: {
        const Value object = kid(0);
        return item(machine_, object, kid(1));
      }
      case Kind::kSlice:
        return slice(node, scope);
      case Kind::kCall:
        return call(node, scope);
      case Kind::kFilter:
        return apply_filter(machine_, node.text, arguments_of(node, 0, scope));
      case Kind::kTest:
        return Value::boolean(apply_test(machine_, node.text, arguments_of(node, 0, scope)) !=
                              node.negated);
      case Kind::kTernary: {
        if (kid(0).truth()) return kid(1);
        return node.kids[2] ? kid(2) : Value::undefined("the else of an inline if");
      }
      case Kind::kUnary: {
        const Value operand = kid(0);
        if (node.text == "not") return Value::boolean(!operand.truth());
        if (!operand.is_number()) {
          machine_.fail(fmt::format("{} cannot be applied to {}", node.text, operand.type_name()));
        }
        if (operand.is_real()) {
          return Value::real(node.text == "-" ? -operand.as_real() : operand.as_real());
        }
        if (node.text == "-" && operand.as_integer() == INT64_MIN) machine_.fail("overflow");
        return Value::integer(node.text == "-" ? -operand.as_integer() : operand.as_integer());
      }
      case Kind::kBinary:
        if (node.text == "and" || node.text == "or") {
          Value left = kid(0);
          return left.truth() == (node.text == "or") ? left : kid(1);
        } else {
          const Value left = kid(0), right = kid(1);
          return binary(node.text, left, right);
        }
      case Kind::kCompare: {
        const std::vector<std::string> operators = split_commas(node.text);
        Value left = kid(0);
        for (size_t i = 0; i < operators.size(); ++i) {
          Value right = kid(i + 1);
          if (!holds(operators[i], left, right)) return Value::boolean(false);
          left = std::move(right);
        }
        return Value::boolean(true);
      }
      default:
        machine_.fail("not an expression");
    }
  }

  bool holds(const std::string& op, const Value& a, const Value& b) {
    if (op == "==") return a.equals(b);
    if (op == "!=") return !a.equals(b);
    if (op == "in") return contains(machine_, b, a);
    if (op == "not in") return !contains(machine_, b, a);
    const int order = compare(machine_, a, b);
    return op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
  }

  Value call(const Node& node, const ScopePointer& scope) {
    const Value callee = evaluate(*node.kids[0], scope);
    const Arguments arguments = arguments_of(node, 1, scope);
    if (callee.is_undefined()) {
      machine_.fail(fmt::format("\"{}\" is undefined", callee.undefined_name()));
    }
    if (!callee.is_function()) {
      machine_.fail(fmt::format("a value of type {} cannot be called", callee.type_name()));
    }
    Value result = callee.as_function()(arguments);
    if (result.is_dict() && result.as_dict().is_namespace) namespaces_.push_back(result);
    return result;
  }

  Value slice(const Node& node, const ScopePointer& scope) {
    const Value object = evaluate(*node.kids[0], scope);
    const auto bound = [&](size_t i, bool& given) {
      given = node.kids[i] != nullptr;
      if (!given) return int64_t{0};
      const Value value = evaluate(*node.kids[i], scope);
      if (value.is_none()) given = false;
      if (value.is_none()) return int64_t{0};
      if (!value.is_whole()) machine_.fail("the bounds of a slice must be integers");
      return value.as_integer();
    };
    bool has_start, has_stop, has_step;
    int64_t start = bound(1, has_start), stop = bound(2, has_stop), step = bound(3, has_step);
    if (!has_step) step = 1;
    if (step == 0) machine_.fail("the step of a slice must not be zero");
    if (!object.is_text() && !object.is_list()) {
      machine_.fail(fmt::format("a value of type {} cannot be sliced", object.type_name()));
    }
    const List items = object.is_text() ? characters(machine_, object.as_text()) : object.as_list();
    const int64_t count = static_cast<int64_t>(items.size());
    const auto clamp = [&](int64_t i) {
      if (i < 0) i = i < -count ? -1 : i + count;
      return step > 0 ? std::clamp<int64_t>(i, 0, count) : std::clamp<int64_t>(i, -1, count - 1);
    };
    start = has_start ? clamp(start) : step > 0 ? 0 : count - 1;
    stop = has_stop ? clamp(stop) : step > 0 ? count : -1;
    step = std::clamp<int64_t>(step, -count - 1, count + 1);
    List out;
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) out.push_back(items[i]);
    if (!object.is_text()) return machine_.list(std::move(out), object.is_tuple());
    std::string text;
    for (const Value& c : out) text += c.as_text();
    return machine_.text(std::move(text));
  }

  Value binary(const std::string& op, const Value& a, const Value& b) {
    if (op == "~") return machine_.text(a.str() + b.str());
    for (const Value* side : {&a, &b}) {
      if (side->is_undefined()) {
        machine_.fail(fmt::format("\"{}\" is undefined", side->undefined_name()));
      }
    }
    if (op == "+" && a.is_text() && b.is_text()) return machine_.text(a.as_text() + b.as_text());
    if (op == "+" && a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
      List items = a.as_list();
      items.insert(items.end(), b.as_list().begin(), b.as_list().end());
      return machine_.list(std::move(items), a.is_tuple());
    }
    if (op == "*" && (a.is_list() || b.is_list()) && (a.is_whole() || b.is_whole())) {
      const Value& unit = a.is_list() ? a : b;
      const int64_t times = std::max<int64_t>(0, a.is_list() ? b.as_integer() : a.as_integer());
      const int64_t size = static_cast<int64_t>(unit.as_list().size() * sizeof(Value));
      if (size > 0 && times > machine_.options.max_bytes / size)
        machine_.fail("a list is too long");
      List items;
      for (int64_t i = 0; size > 0 && i < times; ++i) {
        items.insert(items.end(), unit.as_list().begin(), unit.as_list().end());
      }
      return machine_.list(std::move(items), unit.is_tuple());
    }
    if (op == "*" && (a.is_text() || b.is_text()) && (a.is_whole() || b.is_whole())) {
      const std::string& unit = a.is_text() ? a.as_text() : b.as_text();
      const int64_t times = std::max<int64_t>(0, a.is_text() ? b.as_integer() : a.as_integer());
      const int64_t size = static_cast<int64_t>(unit.size());
      if (size > 0 && times > machine_.options.max_bytes / size) {
        machine_.fail("the template makes too much text");
      }
      std::string out;
      if (size > 0) {
        machine_.charge(times * size);
        for (int64_t i = 0; i < times; ++i) out += unit;
      }
      return machine_.text(std::move(out));
    }
    if (!a.is_number() || !b.is_number()) {
      machine_.fail(
          fmt::format("{} is not defined for {} and {}", op, a.type_name(), b.type_name()));
    }
    return arithmetic(op, a, b);
  }

  Value arithmetic(const std::string& op, const Value& a, const Value& b) {
    const bool divides = op == "/" || op == "//" || op == "%";
    if (divides && b.as_real() == 0) machine_.fail("division by zero");
    if (a.is_whole() && b.is_whole() && op != "/") {
      const int64_t x = a.as_integer(), y = b.as_integer();
      int64_t result = 0;
      bool overflow = false;
      if (op == "+") overflow = __builtin_add_overflow(x, y, &result);
      if (op == "-") overflow = __builtin_sub_overflow(x, y, &result);
      if (op == "*") overflow = __builtin_mul_overflow(x, y, &result);
      if (op == "//" || op == "%") {  // rounded down, as in Python
        if (y == -1) {
          overflow = op == "//" && __builtin_sub_overflow(int64_t{0}, x, &result);
        } else {
          const int64_t quotient = x / y - (x % y != 0 && (x % y < 0) != (y < 0));
          result = op == "//" ? quotient : x - quotient * y;
        }
      }
      if (op == "**") {
        if (y < 0) return Value::real(std::pow(a.as_real(), b.as_real()));
        // Powers of -1, 0 and 1 need no more factors than their parity tells.
        const int64_t factors = x >= -1 && x <= 1 && y > 2 ? 2 + y % 2 : y;
        result = 1;
        for (int64_t i = 0; i < factors && !overflow; ++i) {
          overflow = __builtin_mul_overflow(result, x, &result);
        }
      }
      if (overflow) machine_.fail("a number is too large");
      return Value::integer(result);
    }
    const double x = a.as_real(), y = b.as_real();
    if (op == "+") return Value::real(x + y);
    if (op == "-") return Value::real(x - y);
    if (op == "*") return Value::real(x * y);
    if (op == "/") return Value::real(x / y);
    if (op == "//") return Value::real(std::floor(x / y));
    if (op == "**") return Value::real(std::pow(x, y));
    return Value::real(x - std::floor(x / y) * y);
  }

  Machine machine_;
  ScopePointer root_;
  std::vector<std::weak_ptr<Scope>> scopes_;
  std::vector<Value> namespaces_;
  int loops_ = 0, calls_ = 0;
};

}  // namespace

void Machine::charge(int64_t made) {
  ++steps;
  if (steps > options.max_steps) fail("the template takes too many steps");
  if (made > options.max_bytes - bytes) fail("the template makes too much text");
  bytes += made;
}

void Machine::fail(const std::string& what) const {
  throw Error("{}: line {}: {}", options.name, line, printable(what, 500));
}

}  // namespace jinja

std::string render_chat(const std::string& source, const nlohmann::ordered_json& messages,
                        const ChatOptions& options) {
  const jinja::NodePointer tree = jinja::parse(source, options.name);
  jinja::Interpreter interpreter(options);
  jinja::Scope& root = interpreter.root();
  root.set("messages", jinja::Value::from_json(messages));
  root.set("tools", jinja::Value::none());
  root.set("documents", jinja::Value::none());
  root.set("add_generation_prompt", jinja::Value::boolean(options.add_generation_prompt));
  if (!options.bos_token.empty()) root.set("bos_token", jinja::Value::text(options.bos_token));
  if (!options.eos_token.empty()) root.set("eos_token", jinja::Value::text(options.eos_token));
  for (const auto& [key, value] : options.extra.items()) {
    root.set(key, jinja::Value::from_json(value));
  }
  return interpreter.render(*tree);
}

}  // namespace heed
