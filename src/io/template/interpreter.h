// What the interpreter (template.cc) and the built-in functions share.
#pragma once

#include <string>
#include <string_view>

#include "io/template/template.h"
#include "io/template/value.h"

namespace heed::jinja {

// The budget of one rendering and where it is in the template.
struct Machine {
  const ChatOptions& options;
  int64_t steps = 0, bytes = 0;
  int line = 0;

  // Counts one step, and `made` bytes of new text or list; Error when the budget is spent.
  void charge(int64_t made = 0);
  [[noreturn]] void fail(const std::string& what) const;  // Error with name and line

  Value text(std::string s) {
    charge(static_cast<int64_t>(s.size()));
    return Value::text(std::move(s));
  }
  // Markup where `model` is.
  Value text_like(const Value& model, std::string s) {
    charge(static_cast<int64_t>(s.size()));
    return model.is_markup() ? Value::markup(std::move(s)) : Value::text(std::move(s));
  }
  Value list(List items, bool tuple = false) {
    charge(static_cast<int64_t>(items.size() * sizeof(Value)));
    return Value::list(std::move(items), tuple);
  }
};

// filters.cc. `{{ input | name(...) }}`; the first of the arguments is the input.
Value apply_filter(Machine& machine, const std::string& name, const Arguments& arguments);
bool is_filter(std::string_view name);
// tests.cc. `{{ input is name(...) }}`
bool apply_test(Machine& machine, const std::string& name, const Arguments& arguments);
bool is_test(std::string_view name);
// methods.cc. `object.name` of a text, list or mapping: its method, bound; undefined where there is
// none.
Value method(Machine& machine, const Value& object, const std::string& name);
// globals.cc. range, namespace, dict, joiner, raise_exception, strftime_now; undefined where there
// is none.
Value global_function(Machine& machine, const std::string& name);

// operators.cc. `a op b` for + - * / // % ** ~, and -a, +a.
Value binary(Machine& machine, const std::string& op, const Value& a, const Value& b);
Value unary(Machine& machine, const std::string& op, const Value& operand);
// `a op b` for == != < <= > >= in, "not in".
bool holds(Machine& machine, const std::string& op, const Value& a, const Value& b);

// access.cc. What a loop, a filter or `in` goes through: items, keys, characters. Error for numbers
// and none.
List iterate(Machine& machine, const Value& value);
// object.name and object[index] as Jinja resolves them.
Value attribute(Machine& machine, const Value& object, const std::string& name);
Value item(Machine& machine, const Value& object, const Value& index);
Value slice(Machine& machine, const Value& object, const Value& start, const Value& stop,
            const Value& step);
bool contains(Machine& machine, const Value& container, const Value& wanted);
// -1, 0, 1 as in Python; Error for values without an order.
int compare(Machine& machine, const Value& a, const Value& b);
// Code points of a text, as texts.
List characters(Machine& machine, const std::string& text);
// The mapping's entry is set; Error where the key cannot be one.
void set_entry(Machine& machine, Dict& dict, const Value& key, Value value);

}  // namespace heed::jinja
