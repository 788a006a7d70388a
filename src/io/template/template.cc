#include "io/template/template.h"

#include <algorithm>
#include <memory>

#include "io/describe.h"
#include "io/error.h"
#include "io/template/interpreter.h"
#include "io/template/parser.h"

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

// Does the tree hold the name?
bool mentions(const Node& node, std::string_view name) {
  if (node.kind == Kind::kName && node.text == name) return true;
  const auto within = [&](const NodePointer& kid) { return kid && mentions(*kid, name); };
  return std::any_of(node.kids.begin(), node.kids.end(), within) ||
         std::any_of(node.named.begin(), node.named.end(),
                     [&](const auto& entry) { return within(entry.second); });
}

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
        run_for(node, scope, evaluate(*node.kids[0], scope), 1, out);
        return Flow::kNormal;
      case Kind::kSet:
        assign(node, scope, evaluate(*node.kids[0], scope));
        return Flow::kNormal;
      case Kind::kSetBlock:
        scope->set(node.text, captured(node, scope));
        return Flow::kNormal;
      case Kind::kFilterBlock:
        append(out, captured(node, scope).str());
        return Flow::kNormal;
      case Kind::kWith: {
        const ScopePointer inner = new_scope(scope);
        for (const auto& [name, value] : node.named) inner->set(name, evaluate(*value, scope));
        return run(*node.kids[0], inner, out);
      }
      case Kind::kMacro:
        scope->set(node.text, macro(node, scope));
        return Flow::kNormal;
      case Kind::kCallBlock: {
        const Node& call_node = *node.kids[0];
        const Value callee = evaluate(*call_node.kids[0], scope);
        Arguments arguments = arguments_of(call_node, 1, scope);
        arguments.named.emplace_back("caller", macro(*node.kids[1], scope));
        append(out, call(callee, arguments).str());
        return Flow::kNormal;
      }
      case Kind::kBreak:
        return Flow::kBreak;
      case Kind::kContinue:
        return Flow::kContinue;
      default:
        machine_.fail("not a statement");
    }
  }

  // The text of a block, through its filters.
  Value captured(const Node& node, const ScopePointer& scope) {
    std::string text;
    const ScopePointer inner = new_scope(scope);
    run(*node.kids[0], inner, text);
    const Value plain = machine_.text(std::move(text));
    if (!node.kids[1]) return plain;
    const Value before = std::exchange(captured_, plain);
    Value out = evaluate(*node.kids[1], scope);
    captured_ = before;
    return out;
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

  // `depth`: how often the loop has called itself, plus one.
  void run_for(const Node& node, const ScopePointer& scope, const Value& iterable, int depth,
               std::string& out) {
    if (depth > kMaxCalls) machine_.fail("a loop calls itself too deeply");
    const std::vector<std::string> targets = split_commas(node.text);
    List items = iterate(machine_, iterable);
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
      if (node.kids[2]) run(*node.kids[2], new_scope(scope), out);
      return;
    }
    const auto changes = std::make_shared<std::optional<List>>();  // what loop.changed() saw last
    for (int64_t i = 0; i < static_cast<int64_t>(items.size()); ++i) {
      const ScopePointer inner = new_scope(scope);
      bind(targets, items[i], *inner);
      Dict loop = loop_variable(items, i, depth, changes);
      if (node.negated) {
        loop.set(kCallEntry, Value::function([this, &node, scope, depth](const Arguments& a) {
                   if (a.list.size() != 1) machine_.fail("loop() takes what to go through");
                   std::string text;
                   run_for(node, scope, a.list[0], depth + 1, text);
                   return machine_.text(std::move(text));
                 }));
      }
      inner->set("loop", Value::dict(std::move(loop)));
      const Flow flow = run(*node.kids[1], inner, out);
      if (flow == Flow::kBreak) break;
    }
  }

  Dict loop_variable(const List& items, int64_t i, int depth,
                     const std::shared_ptr<std::optional<List>>& changes) {
    const int64_t count = static_cast<int64_t>(items.size());
    Dict loop;
    loop.is_namespace = true;
    loop.entries.reserve(14);
    size_t next = 0;
    // The keys are made once: a loop's variable is made at every turn.
    static const std::vector<Value> kKeys = [] {
      std::vector<Value> keys;
      for (const char* key : {"index", "index0", "first", "last", "length", "revindex", "revindex0",
                              "depth", "depth0", "cycle", "changed", "previtem", "nextitem"}) {
        keys.push_back(Value::text(key));
      }
      return keys;
    }();
    const auto add = [&](Value value) {
      loop.entries.emplace_back(kKeys[next++], std::move(value));
    };
    add(Value::integer(i + 1));
    add(Value::integer(i));
    add(Value::boolean(i == 0));
    add(Value::boolean(i + 1 == count));
    add(Value::integer(count));
    add(Value::integer(count - i));
    add(Value::integer(count - i - 1));
    add(Value::integer(depth));
    add(Value::integer(depth - 1));
    Machine* machine = &machine_;
    add(Value::function([machine, i](const Arguments& a) {
      if (a.list.empty()) machine->fail("loop.cycle() without values");
      return a.list[i % a.list.size()];
    }));
    add(Value::function([changes](const Arguments& a) {
      const bool same = *changes && Value::list(**changes).equals(Value::list(a.list));
      *changes = a.list;
      return Value::boolean(!same);
    }));
    if (i > 0) loop.entries.emplace_back(kKeys[next], items[i - 1]);
    if (i + 1 < count) loop.entries.emplace_back(kKeys[next + 1], items[i + 1]);
    return loop;
  }

  Value macro(const Node& node, const ScopePointer& scope) {
    scopes_.push_back(scope);
    const bool more = mentions(*node.kids[0], "varargs"), named = mentions(*node.kids[0], "kwargs");
    const bool caller = mentions(*node.kids[0], "caller");
    return Value::function([this, &node, scope, more, named, caller](const Arguments& arguments) {
      if (++calls_ > kMaxCalls) machine_.fail("macros call each other too deeply");
      const ScopePointer inner = new_scope(scope);
      bind_parameters(node, arguments, more, named, caller, inner);
      std::string text;
      run(*node.kids[0], inner, text);
      --calls_;
      return machine_.text(std::move(text));
    });
  }

  void bind_parameters(const Node& node, const Arguments& arguments, bool more, bool named,
                       bool caller, const ScopePointer& inner) {
    const size_t known = node.named.size(), given = arguments.list.size();
    if (given > known && !more) {
      machine_.fail(
          fmt::format("macro \"{}\" takes {} arguments, not {}", node.text, known, given));
    }
    if (more) {
      inner->set("varargs", machine_.list(List(arguments.list.begin() +
                                                   static_cast<int64_t>(std::min(known, given)),
                                               arguments.list.end()),
                                          true));
    }
    Dict others;
    std::vector<const Value*> by_name(known);
    for (const auto& [name, value] : arguments.named) {
      const auto parameter = std::find_if(node.named.begin(), node.named.end(),
                                          [&, &n = name](const auto& p) { return p.first == n; });
      if (parameter != node.named.end()) {
        by_name[static_cast<size_t>(parameter - node.named.begin())] = &value;
      } else if (name == "caller" && caller) {
        inner->set(name, value);
      } else if (named) {
        others.set(name, value);
      } else {
        machine_.fail(fmt::format("macro \"{}\" has no argument \"{}\"", node.text, name));
      }
    }
    if (named) inner->set("kwargs", Value::dict(std::move(others)));
    for (size_t i = 0; i < known; ++i) {
      const auto& [name, fallback] = node.named[i];
      if (i < given && by_name[i]) {
        machine_.fail(fmt::format("macro \"{}\" is given \"{}\" twice", node.text, name));
      }
      inner->set(name, i < given    ? arguments.list[i]
                       : by_name[i] ? *by_name[i]
                       : fallback   ? evaluate(*fallback, inner)
                                    : Value::undefined(name));
    }
  }

  Arguments arguments_of(const Node& node, size_t first, const ScopePointer& scope) {
    Arguments arguments;
    arguments.line = node.line;
    for (size_t i = first; i < node.kids.size(); ++i) {
      const Node& kid = *node.kids[i];
      if (kid.kind != Kind::kSpread) {
        arguments.list.push_back(evaluate(kid, scope));
        continue;
      }
      const Value values = evaluate(*kid.kids[0], scope);
      if (kid.text == "*") {
        for (Value& value : iterate(machine_, values)) arguments.list.push_back(std::move(value));
        continue;
      }
      if (!values.is_dict()) machine_.fail("** takes a mapping");
      for (const auto& [key, value] : values.as_dict().entries) {
        if (!key.is_text()) machine_.fail("the keys behind ** must be strings");
        arguments.named.emplace_back(key.as_text(), value);
      }
    }
    for (const auto& [name, value] : node.named) {
      arguments.named.emplace_back(name, evaluate(*value, scope));
    }
    machine_.line = node.line;
    return arguments;
  }

  Value call(const Value& callee, const Arguments& arguments) {
    if (callee.is_undefined()) {
      machine_.fail(fmt::format("\"{}\" is undefined", callee.undefined_name()));
    }
    if (callee.is_dict()) {  // a loop that calls itself
      const Value* function = callee.as_dict().find(kCallEntry);
      if (callee.as_dict().is_namespace && function) return function->as_function()(arguments);
    }
    if (!callee.is_function()) {
      machine_.fail(fmt::format("a value of type {} cannot be called", callee.type_name()));
    }
    Value result = callee.as_function()(arguments);
    if (result.is_dict() && result.as_dict().is_namespace) namespaces_.push_back(result);
    return result;
  }

  Value name(const Node& node, const ScopePointer& scope) {
    if (const Value* found = scope->find(node.text)) return *found;
    Value function = global_function(machine_, node.text);
    return function.is_undefined() ? Value::undefined(node.text) : function;
  }

  Value sequence(const Node& node, const ScopePointer& scope) {
    List items;
    for (const NodePointer& kid : node.kids) items.push_back(evaluate(*kid, scope));
    return machine_.list(std::move(items), node.kind == Kind::kTuple);
  }

  Value mapping(const Node& node, const ScopePointer& scope) {
    Dict dict;
    for (size_t i = 0; i < node.kids.size(); i += 2) {
      const Value key = evaluate(*node.kids[i], scope);
      set_entry(machine_, dict, key, evaluate(*node.kids[i + 1], scope));
    }
    return Value::dict(std::move(dict));
  }

  Value ternary(const Node& node, const ScopePointer& scope) {
    if (evaluate(*node.kids[0], scope).truth()) return evaluate(*node.kids[1], scope);
    return node.kids[2] ? evaluate(*node.kids[2], scope)
                        : Value::undefined("the else of an inline if");
  }

  Value comparison(const Node& node, const ScopePointer& scope) {
    const std::vector<std::string> operators = split_commas(node.text);
    Value left = evaluate(*node.kids[0], scope);
    for (size_t i = 0; i < operators.size(); ++i) {
      Value right = evaluate(*node.kids[i + 1], scope);
      if (!holds(machine_, operators[i], left, right)) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Value sliced(const Node& node, const ScopePointer& scope) {
    const Value object = evaluate(*node.kids[0], scope);
    const auto bound = [&](size_t i) {
      return node.kids[i] ? evaluate(*node.kids[i], scope) : Value::none();
    };
    const Value start = bound(1), stop = bound(2);
    return slice(machine_, object, start, stop, bound(3));
  }

  Value evaluate(const Node& node, const ScopePointer& scope) {
    machine_.charge();
    machine_.line = node.line;
    const auto kid = [&](size_t i) { return evaluate(*node.kids[i], scope); };
    switch (node.kind) {
      case Kind::kLiteral:
        return node.value;
      case Kind::kCaptured:
        return captured_;
      case Kind::kName:
        return name(node, scope);
      case Kind::kList:
      case Kind::kTuple:
        return sequence(node, scope);
      case Kind::kDict:
        return mapping(node, scope);
      case Kind::kAttribute:
        return attribute(machine_, kid(0), node.text);
      case Kind::kItem: {
        const Value object = kid(0);
        return item(machine_, object, kid(1));
      }
      case Kind::kSlice:
        return sliced(node, scope);
      case Kind::kCall: {
        const Value callee = kid(0);
        return call(callee, arguments_of(node, 1, scope));
      }
      case Kind::kFilter:
        return apply_filter(machine_, node.text, arguments_of(node, 0, scope));
      case Kind::kTest:
        return Value::boolean(apply_test(machine_, node.text, arguments_of(node, 0, scope)) !=
                              node.negated);
      case Kind::kTernary:
        return ternary(node, scope);
      case Kind::kUnary:
        return unary(machine_, node.text, kid(0));
      case Kind::kBinary: {
        Value left = kid(0);
        const bool logical = node.text == "and" || node.text == "or";
        if (logical && left.truth() == (node.text == "or")) return left;
        Value right = kid(1);
        return logical ? right : binary(machine_, node.text, left, right);
      }
      case Kind::kCompare:
        return comparison(node, scope);
      default:
        machine_.fail("not an expression");
    }
  }

  // Under this name, which no template can write, a loop holds the function that runs it again.
  static constexpr std::string_view kCallEntry = "()";

  Machine machine_;
  ScopePointer root_;
  std::vector<std::weak_ptr<Scope>> scopes_;
  std::vector<Value> namespaces_;
  Value captured_;
  int calls_ = 0;
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
