// The functions, filters and tests that chat templates call. Behaviour: jinja2/filters.py and
// jinja2/tests.py.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <limits>
#include <optional>
#include <stdexcept>

#include "io/describe.h"
#include "io/error.h"
#include "io/template/call.h"
#include "io/template/interpreter.h"
#include "io/tokenizer/unicode.h"

namespace heed::jinja {

namespace {

// "a.b.0" of an item, as map(attribute=...) and selectattr name it.
Value by_path(Machine& machine, Value value, const std::string& path) {
  size_t at = 0;
  while (true) {
    const size_t dot = std::min(path.find('.', at), path.size());
    const std::string part = path.substr(at, dot - at);
    int64_t index = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool number = error == std::errc() && end == part.data() + part.size();
    value = item(machine, value, number ? Value::integer(index) : Value::text(part));
    if (dot == path.size()) return value;
    at = dot + 1;
  }
}

// selectattr, rejectattr, select, reject: (input, [attribute,] test, test's arguments...).
Value select(Machine& machine, const Arguments& arguments, bool by_attribute, bool keep) {
  size_t at = 1;
  std::string path;
  if (by_attribute) {
    if (arguments.list.size() < 2 || !arguments.list[1].is_text()) {
      machine.fail("selectattr and rejectattr need the name of an attribute");
    }
    path = arguments.list[at++].as_text();
  }
  std::string test;
  if (at < arguments.list.size()) {
    if (!arguments.list[at].is_text()) machine.fail("the name of a test must be a string");
    test = arguments.list[at++].as_text();
  }
  List out;
  for (const Value& value : iterate(machine, arguments.list[0])) {
    Arguments call;
    call.list.push_back(by_attribute ? by_path(machine, value, path) : value);
    call.list.insert(call.list.end(), arguments.list.begin() + at, arguments.list.end());
    const bool truth = test.empty() ? call.list[0].truth() : apply_test(machine, test, call);
    if (truth == keep) out.push_back(value);
  }
  return machine.list(std::move(out));
}

Value map_filter(Machine& machine, const Arguments& arguments) {
  const List items = iterate(machine, arguments.list[0]);
  List out;
  if (arguments.list.size() == 1) {
    Call call(machine, "map", arguments, 1);
    const std::string path = call.text(SIZE_MAX / 2, "attribute");
    const Value* fallback = call.find(SIZE_MAX / 2, "default");
    for (const Value& value : items) {
      Value found = by_path(machine, value, path);
      out.push_back(found.is_undefined() && fallback ? *fallback : std::move(found));
    }
    return machine.list(std::move(out));
  }
  if (!arguments.list[1].is_text()) machine.fail("map: the name of a filter must be a string");
  for (const Value& value : items) {
    Arguments call;
    call.list.push_back(value);
    call.list.insert(call.list.end(), arguments.list.begin() + 2, arguments.list.end());
    call.named = arguments.named;
    out.push_back(apply_filter(machine, arguments.list[1].as_text(), call));
  }
  return machine.list(std::move(out));
}

// sort, min, max, unique: order by attribute, texts without regard to case.
Value sort_key(Machine& machine, const Value& value, const Value* attribute, bool case_sensitive) {
  Value key =
      attribute && attribute->is_text() ? by_path(machine, value, attribute->as_text()) : value;
  return key.is_text() && !case_sensitive ? machine.text(unicode::lower(key.as_text())) : key;
}

Value sort_filter(Machine& machine, const Value& input, Call& call) {
  const bool reverse = call.flag(0, "reverse", false);
  const bool case_sensitive = call.flag(1, "case_sensitive", false);
  const Value* attribute = call.find(2, "attribute");
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& value : iterate(machine, input)) {
    keyed.emplace_back(sort_key(machine, value, attribute, case_sensitive), value);
  }
  for (size_t i = 1; i < keyed.size(); ++i) compare(machine, keyed[0].first, keyed[i].first);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    const int order = compare(machine, a.first, b.first);
    return reverse ? order > 0 : order < 0;
  });
  List out;
  for (auto& [key, value] : keyed) out.push_back(std::move(value));
  return machine.list(std::move(out));
}

std::string indent(const std::string& text, Call& call) {
  const Value* width = call.find(0, "width");
  const std::string prefix =
      width && width->is_text()
          ? width->as_text()
          : std::string(
                static_cast<size_t>(std::clamp<int64_t>(call.integer(0, "width", 4), 0, 1000)),
                ' ');
  const bool first = call.flag(1, "first", false), blank = call.flag(2, "blank", false);
  std::string out;
  for (size_t at = 0, line = 0;; ++line) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if ((line > 0 || first) && (blank || end > at || (line == 0 && first))) out += prefix;
    out.append(text, at, end - at);
    if (end == text.size()) return out;
    out += '\n';
    at = end + 1;
  }
}

Value to_integer(Machine& machine, const Value& input, int64_t fallback) {
  if (input.is_whole()) return Value::integer(input.as_integer());
  double real = std::numeric_limits<double>::quiet_NaN();
  if (input.is_real()) real = input.as_real();
  if (input.is_text()) {
    const std::string text = strip(input.as_text(), std::nullopt, true, true);
    const char* start = text.data() + (text.starts_with('+') ? 1 : 0);
    const char* end = text.data() + text.size();
    int64_t value = 0;
    const auto whole = std::from_chars(start, end, value);
    if (whole.ec == std::errc() && whole.ptr == end) return Value::integer(value);
    const auto parsed = std::from_chars(start, end, real);
    if (parsed.ec != std::errc() || parsed.ptr != end) return Value::integer(fallback);
  }
  if (!(std::abs(real) < 9.2e18)) return Value::integer(fallback);
  return Value::integer(static_cast<int64_t>(real));
}

Value to_real(const Value& input, double fallback) {
  if (input.is_number()) return Value::real(input.as_real());
  if (!input.is_text()) return Value::real(fallback);
  const std::string text = strip(input.as_text(), std::nullopt, true, true);
  double value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data() + text.starts_with('+'), end, value);
  return Value::real(parsed.ec == std::errc() && parsed.ptr == end ? value : fallback);
}

Value json_filter(Machine& machine, const Value& input, Call& call) {
  JsonStyle style;
  // transformers' own tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)
  style.ensure_ascii = call.flag(0, "ensure_ascii", false);
  style.indent = static_cast<int>(std::clamp<int64_t>(call.integer(1, "indent", -1), -1, 100));
  if (style.indent >= 0) style.item_separator = ",";
  const Value* separators = call.find(2, "separators");
  if (separators && separators->is_list() && separators->as_list().size() == 2) {
    style.item_separator = separators->as_list()[0].str();
    style.key_separator = separators->as_list()[1].str();
  }
  style.sort_keys = call.flag(3, "sort_keys", false);
  try {
    return machine.text(to_json(input, style));
  } catch (const std::invalid_argument& error) {
    machine.fail(fmt::format("tojson: a value of type {} is not JSON", error.what()));
  }
}

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

int64_t length_of(Machine& machine, const Value& value) {
  if (value.is_text()) return count_characters(value.as_text());
  if (value.is_list()) return static_cast<int64_t>(value.as_list().size());
  if (value.is_dict()) return static_cast<int64_t>(value.as_dict().entries.size());
  if (value.is_undefined()) return 0;
  machine.fail(fmt::format("a value of type {} has no length", value.type_name()));
}

std::optional<Value> filter(Machine& m, const std::string& name, const Value& input, Call& call) {
  if (name == "trim") {
    const Value* set = call.find(0, "chars");
    return m.text(set && set->is_text() ? strip(input.str(), set->as_text(), true, true)
                                        : strip(input.str(), std::nullopt, true, true));
  }
  if (name == "length" || name == "count") return Value::integer(length_of(m, input));
  if (name == "tojson") return json_filter(m, input, call);
  if (name == "upper") return m.text(upper(input.str()));
  if (name == "lower") return m.text(unicode::lower(input.str()));
  if (name == "capitalize") return m.text(capitalize(input.str()));
  if (name == "title") return m.text(title(input.str()));
  if (name == "string") return m.text(input.str());
  if (name == "safe") return input;
  if (name == "escape" || name == "e") return m.text(escape(input.str()));
  if (name == "int") return to_integer(m, input, call.integer(0, "default", 0));
  if (name == "float") {
    const Value* fallback = call.find(0, "default");
    return to_real(input, fallback && fallback->is_number() ? fallback->as_real() : 0.0);
  }
  if (name == "abs") {
    if (!input.is_number()) m.fail("abs of " + input.type_name());
    if (input.is_real()) return Value::real(std::abs(input.as_real()));
    if (input.as_integer() == INT64_MIN) m.fail("a number is too large");
    return Value::integer(std::abs(input.as_integer()));
  }
  if (name == "round") {
    if (!input.is_number()) m.fail("round of " + input.type_name());
    const double scale = std::pow(
        10.0, static_cast<double>(std::clamp<int64_t>(call.integer(0, "precision", 0), 0, 15)));
    const double scaled = input.as_real() * scale;
    const Value* how = call.find(1, "method");
    const std::string method = how ? how->str() : "common";
    return Value::real((method == "ceil"    ? std::ceil(scaled)
                        : method == "floor" ? std::floor(scaled)
                                            : std::nearbyint(scaled)) /
                       scale);
  }
  if (name == "default" || name == "d") {
    const Value* fallback = call.find(0, "default_value");
    const bool also_false = call.flag(1, "boolean", false);
    const bool use = input.is_undefined() || (also_false && !input.truth());
    return use ? (fallback ? *fallback : m.text("")) : input;
  }
  if (name == "join") {
    const Value* by = call.find(0, "d");
    const Value* attribute = call.find(1, "attribute");
    List items = iterate(m, input);
    if (attribute && attribute->is_text()) {
      for (Value& v : items) v = by_path(m, v, attribute->as_text());
    }
    return m.text(join(m, items, by ? by->str() : ""));
  }
  if (name == "replace") {
    const std::string from = call.need(0, "old").str(), to = call.need(1, "new").str();
    return m.text(replace(m, input.str(), from, to, call.integer(2, "count", -1)));
  }
  if (name == "indent") return m.text(indent(input.str(), call));
  if (name == "list") return m.list(iterate(m, input));
  if (name == "first" || name == "last") {
    const List items = iterate(m, input);
    if (items.empty()) return Value::undefined(name + " of an empty sequence");
    return name == "first" ? items.front() : items.back();
  }
  if (name == "reverse") {
    if (input.is_text()) {
      const List items = characters(m, input.as_text());
      return m.text(join(m, List(items.rbegin(), items.rend()), ""));
    }
    const List items = iterate(m, input);
    return m.list(List(items.rbegin(), items.rend()));
  }
  if (name == "sort") return sort_filter(m, input, call);
  if (name == "min" || name == "max") {
    std::optional<Value> best, best_key;
    const bool case_sensitive = call.flag(0, "case_sensitive", false);
    const Value* attribute = call.find(1, "attribute");
    for (const Value& v : iterate(m, input)) {
      Value key = sort_key(m, v, attribute, case_sensitive);
      const int order = best ? compare(m, key, *best_key) : 0;
      if (best && (name == "min" ? order >= 0 : order <= 0)) continue;
      best = v;
      best_key = std::move(key);
    }
    return best ? *best : Value::undefined(name + " of an empty sequence");
  }
  if (name == "sum") {
    Value total = Value::integer(0);
    const Value* attribute = call.find(0, "attribute");
    for (const Value& v : iterate(m, input)) {
      const Value x = attribute ? by_path(m, v, attribute->str()) : v;
      if (!x.is_number()) m.fail("sum over " + x.type_name());
      int64_t whole = 0;
      if (x.is_whole() && total.is_whole() &&
          !__builtin_add_overflow(x.as_integer(), total.as_integer(), &whole)) {
        total = Value::integer(whole);
      } else {
        total = Value::real(x.as_real() + total.as_real());
      }
    }
    return total;
  }
  if (name == "unique") {
    const bool case_sensitive = call.flag(0, "case_sensitive", false);
    List keys, out;
    for (const Value& v : iterate(m, input)) {
      Value key = sort_key(m, v, call.find(1, "attribute"), case_sensitive);
      m.charge(static_cast<int64_t>(keys.size()));
      const auto same = [&](const Value& k) { return k.equals(key); };
      if (std::any_of(keys.begin(), keys.end(), same)) continue;
      keys.push_back(std::move(key));
      out.push_back(v);
    }
    return m.list(std::move(out));
  }
  if (name == "items") {
    if (input.is_undefined()) return m.list({});
    if (!input.is_dict()) m.fail("items of " + input.type_name() + ": expected a mapping");
    return pair_list(m, input.as_dict());
  }
  if (name == "dictsort") {
    if (!input.is_dict()) m.fail("dictsort of " + input.type_name() + ": expected a mapping");
    Dict sorted = input.as_dict();
    std::stable_sort(sorted.entries.begin(), sorted.entries.end(),
                     [](const auto& a, const auto& b) {
                       return unicode::lower(a.first) < unicode::lower(b.first);
                     });
    return pair_list(m, sorted);
  }
  return std::nullopt;
}

}  // namespace

Value apply_filter(Machine& machine, const std::string& name, const Arguments& arguments) {
  machine.charge();
  if (name == "selectattr") return select(machine, arguments, true, true);
  if (name == "rejectattr") return select(machine, arguments, true, false);
  if (name == "select") return select(machine, arguments, false, true);
  if (name == "reject") return select(machine, arguments, false, false);
  if (name == "map") return map_filter(machine, arguments);
  Call call(machine, name, arguments, 1);
  std::optional<Value> result = filter(machine, name, arguments.list[0], call);
  if (!result) machine.fail(fmt::format("the filter \"{}\" is not supported", printable(name)));
  call.done();
  return *std::move(result);
}

bool apply_test(Machine& machine, const std::string& name, const Arguments& arguments) {
  machine.charge();
  const Value& v = arguments.list[0];
  const auto other = [&]() -> const Value& {
    if (arguments.list.size() < 2) {
      machine.fail(fmt::format("the test \"{}\" needs an argument", name));
    }
    return arguments.list[1];
  };
  if (name == "defined") return !v.is_undefined();
  if (name == "undefined") return v.is_undefined();
  if (name == "none") return v.is_none();
  if (name == "string") return v.is_text();
  if (name == "mapping") return v.is_dict() && !v.as_dict().is_namespace;
  if (name == "sequence" || name == "iterable") {
    return v.is_text() || v.is_list() || v.is_undefined() ||
           (v.is_dict() && !v.as_dict().is_namespace);
  }
  if (name == "number") return v.is_number();
  if (name == "integer") return v.is_integer();
  if (name == "float") return v.is_real();
  if (name == "boolean") return v.is_boolean();
  if (name == "true") return v.is_boolean() && v.truth();
  if (name == "false") return v.is_boolean() && !v.truth();
  if (name == "callable") return v.is_function();
  if (name == "equalto" || name == "eq" || name == "==") return v.equals(other());
  if (name == "ne" || name == "!=") return !v.equals(other());
  if (name == "sameas") return v.same_object(other());
  if (name == "in") return contains(machine, other(), v);
  if (name == "lt" || name == "lessthan" || name == "<") return compare(machine, v, other()) < 0;
  if (name == "le" || name == "<=") return compare(machine, v, other()) <= 0;
  if (name == "gt" || name == "greaterthan" || name == ">") return compare(machine, v, other()) > 0;
  if (name == "ge" || name == ">=") return compare(machine, v, other()) >= 0;
  if (name == "upper") return v.str() == upper(v.str()) && v.str() != unicode::lower(v.str());
  if (name == "lower") return v.str() == unicode::lower(v.str()) && v.str() != upper(v.str());
  if (name == "odd" || name == "even" || name == "divisibleby") {
    const int64_t by = name == "divisibleby" && other().is_whole() ? other().as_integer() : 2;
    if (!v.is_whole() || by == 0) machine.fail(fmt::format("the test \"{}\" needs integers", name));
    const bool divides = by == -1 || v.as_integer() % by == 0;
    return name == "odd" ? !divides : divides;
  }
  machine.fail(fmt::format("the test \"{}\" is not supported", printable(name)));
}

Value global_function(Machine& machine, const std::string& name) {
  Machine* m = &machine;
  if (name == "range") {
    return Value::function([m](const Arguments& a) {
      int64_t bounds[3] = {0, 0, 1};
      if (a.list.empty() || a.list.size() > 3) m->fail("range takes one to three integers");
      for (size_t i = 0; i < a.list.size(); ++i) {
        if (!a.list[i].is_whole()) m->fail("range takes integers, not " + a.list[i].type_name());
        bounds[a.list.size() == 1 ? 1 : i] = a.list[i].as_integer();
      }
      const auto [start, stop, step] = bounds;
      if (step == 0) m->fail("the step of range must not be zero");
      List out;
      for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
        if (out.size() >= 100'000) m->fail("range of more than 100000 numbers");
        out.push_back(Value::integer(i));
        if (__builtin_add_overflow(i, step, &i)) break;
      }
      return m->list(std::move(out));
    });
  }
  if (name == "namespace" || name == "dict") {
    const bool space = name == "namespace";
    return Value::function([m, space](const Arguments& a) {
      Dict dict;
      dict.is_namespace = space;
      for (const Value& v : a.list) {
        if (!v.is_dict()) m->fail("namespace and dict take a mapping or named values");
        for (const auto& [key, value] : v.as_dict().entries) dict.set(key, value);
      }
      for (const auto& [key, value] : a.named) dict.set(key, value);
      m->charge(static_cast<int64_t>(dict.entries.size() * 64));
      return Value::dict(std::move(dict));
    });
  }
  if (name == "raise_exception") {
    return Value::function([m](const Arguments& a) -> Value {
      m->fail("the template says: " + (a.list.empty() ? "" : a.list[0].str()));
    });
  }
  if (name == "strftime_now") {
    return Value::function([m](const Arguments& a) {
      if (a.list.size() != 1 || !a.list[0].is_text()) m->fail("strftime_now takes one format");
      std::tm now{};
      if (m->options.now) {
        now = *m->options.now;
      } else {
        const std::time_t clock = std::time(nullptr);
        localtime_r(&clock, &now);
      }
      char text[512];
      const size_t length = std::strftime(text, sizeof(text), a.list[0].as_text().c_str(), &now);
      return m->text(std::string(text, length));
    });
  }
  return Value::undefined(name);
}

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
    for (const auto& [key, item] : value.as_dict().entries) keys.push_back(Value::text(key));
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
    const Value* found = index.is_text() ? object.as_dict().find(index.as_text()) : nullptr;
    return found ? *found : Value::undefined(index.str());
  }
  if (!index.is_whole() || !(object.is_list() || object.is_text())) {
    return Value::undefined(index.str());
  }
  const List items = object.is_text() ? characters(machine, object.as_text()) : List();
  const List& all = object.is_text() ? items : object.as_list();
  int64_t i = index.as_integer();
  if (i < 0) i += static_cast<int64_t>(all.size());
  if (i < 0 || i >= static_cast<int64_t>(all.size())) return Value::undefined(index.str());
  return all[i];
}

bool contains(Machine& machine, const Value& container, const Value& wanted) {
  if (container.is_text()) {
    if (!wanted.is_text()) {
      machine.fail(fmt::format("\"in\" a string needs a string, not {}", wanted.type_name()));
    }
    return container.as_text().find(wanted.as_text()) != std::string::npos;
  }
  if (container.is_dict() && !container.as_dict().is_namespace) {
    return wanted.is_text() && container.as_dict().find(wanted.as_text());
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
  if (a.is_list() && b.is_list()) {
    const List &x = a.as_list(), &y = b.as_list();
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!x[i].equals(y[i])) return compare(machine, x[i], y[i]);
    }
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  machine.fail(fmt::format("values of type {} and {} have no order", a.type_name(), b.type_name()));
}

}  // namespace heed::jinja
