// How templates reach into values: items, attributes, slices, membership, order.
#include <fmt/format.h>

#include <algorithm>

#include "io/describe.h"
#include "io/template/interpreter.h"
#include "io/tokenizer/unicode.h"

namespace heed::jinja {

List characters(Machine& machine, const std::string& text) {
  List out;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    unicode::next(text, at);
    out.push_back(Value::text(text.substr(start, at - start)));
  }
  machine.charge(static_cast<int64_t>(out.size() * sizeof(Value)));
  return out;
}

List iterate(Machine& machine, const Value& value) {
  if (value.is_list()) {
    machine.charge(static_cast<int64_t>(value.as_list().size()));
    return value.as_list();
  }
  if (value.is_text()) return characters(machine, value.as_text());
  if (value.is_undefined()) return {};
  if (value.is_dict() && !value.as_dict().is_namespace) {
    List keys;
    for (const auto& [key, item] : value.as_dict().entries) keys.push_back(key);
    machine.charge(static_cast<int64_t>(keys.size() * sizeof(Value)));
    return keys;
  }
  machine.fail(fmt::format("a value of type {} cannot be gone through", value.type_name()));
}

Value attribute(Machine& machine, const Value& object, const std::string& name) {
  if (object.is_undefined()) {
    machine.fail(fmt::format("\"{}\" is undefined, so it has no \"{}\"", object.undefined_name(),
                             printable(name)));
  }
  if (object.is_dict()) {
    if (!object.as_dict().is_namespace) {
      Value bound = method(machine, object, name);
      if (!bound.is_undefined()) return bound;
    }
    const Value* found = object.as_dict().find(name);
    return found ? *found : Value::undefined(name);
  }
  return method(machine, object, name);
}

Value item(Machine& machine, const Value& object, const Value& index) {
  if (object.is_undefined()) {
    machine.fail(fmt::format("\"{}\" is undefined, so it has no [{}]", object.undefined_name(),
                             printable(index.repr())));
  }
  if (object.is_dict()) {
    if (const Value* found = object.as_dict().find(index)) return *found;
  }
  // Where there is no such item, a text names an attribute.
  if (index.is_text()) return method(machine, object, index.as_text());
  if (!index.is_whole() || !(object.is_list() || object.is_text())) {
    return Value::undefined(index.str());
  }
  const List items = object.is_text() ? characters(machine, object.as_text()) : List();
  const List& all = object.is_text() ? items : object.as_list();
  int64_t i = index.as_integer();
  if (i < 0) i += static_cast<int64_t>(all.size());
  if (i < 0 || i >= static_cast<int64_t>(all.size())) return Value::undefined(index.str());
  return object.is_markup() ? Value::markup(all[i].as_text()) : all[i];
}

Value slice(Machine& machine, const Value& object, const Value& start, const Value& stop,
            const Value& step) {
  const auto bound = [&](const Value& value, int64_t fallback) {
    if (value.is_none()) return fallback;
    if (!value.is_whole()) machine.fail("the bounds of a slice must be integers");
    return value.as_integer();
  };
  int64_t by = bound(step, 1);
  if (by == 0) machine.fail("the step of a slice must not be zero");
  if (!object.is_text() && !object.is_list()) {
    machine.fail(fmt::format("a value of type {} cannot be sliced", object.type_name()));
  }
  const List items = object.is_text() ? characters(machine, object.as_text()) : object.as_list();
  const int64_t count = static_cast<int64_t>(items.size());
  const auto clamp = [&](int64_t i) {
    if (i < 0) i = i < -count ? -1 : i + count;
    return by > 0 ? std::clamp<int64_t>(i, 0, count) : std::clamp<int64_t>(i, -1, count - 1);
  };
  const int64_t from = start.is_none() ? (by > 0 ? 0 : count - 1) : clamp(bound(start, 0));
  const int64_t to = stop.is_none() ? (by > 0 ? count : -1) : clamp(bound(stop, 0));
  by = std::clamp<int64_t>(by, -count - 1, count + 1);
  List out;
  for (int64_t i = from; by > 0 ? i < to : i > to; i += by) out.push_back(items[i]);
  if (!object.is_text()) return machine.list(std::move(out), object.is_tuple());
  std::string text;
  for (const Value& c : out) text += c.as_text();
  return machine.text_like(object, std::move(text));
}

bool contains(Machine& machine, const Value& container, const Value& wanted) {
  if (container.is_text()) {
    if (!wanted.is_text()) {
      machine.fail(fmt::format("\"in\" a string needs a string, not {}", wanted.type_name()));
    }
    return container.as_text().find(wanted.as_text()) != std::string::npos;
  }
  if (container.is_dict() && !container.as_dict().is_namespace) {
    if (!wanted.is_hashable()) {
      machine.fail(fmt::format("a value of type {} is no key", wanted.type_name()));
    }
    return container.as_dict().find(wanted) != nullptr;
  }
  if (container.is_list()) {
    machine.charge(static_cast<int64_t>(container.as_list().size()));
    return std::any_of(container.as_list().begin(), container.as_list().end(),
                       [&](const Value& v) { return v.equals(wanted); });
  }
  if (container.is_undefined()) return false;
  machine.fail(fmt::format("\"in\" cannot look into a value of type {}", container.type_name()));
}

int compare(Machine& machine, const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_whole() && b.is_whole()) {
      return a.as_integer() < b.as_integer() ? -1 : a.as_integer() > b.as_integer();
    }
    return a.as_real() < b.as_real() ? -1 : a.as_real() > b.as_real();
  }
  if (a.is_text() && b.is_text()) {
    const int order = a.as_text().compare(b.as_text());
    return order < 0 ? -1 : order > 0;
  }
  if (a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
    const List &x = a.as_list(), &y = b.as_list();
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!x[i].equals(y[i])) return compare(machine, x[i], y[i]);
    }
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  machine.fail(fmt::format("values of type {} and {} have no order", a.type_name(), b.type_name()));
}

void set_entry(Machine& machine, Dict& dict, const Value& key, Value value) {
  if (!key.is_hashable()) {
    machine.fail(fmt::format("a value of type {} cannot be the key of a mapping", key.type_name()));
  }
  machine.charge(64);
  dict.set(key, std::move(value));
}

}  // namespace heed::jinja
