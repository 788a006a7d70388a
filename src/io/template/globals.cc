// The functions that every template can call.
#include <algorithm>
#include <ctime>
#include <memory>

#include "io/template/call.h"
#include "io/template/interpreter.h"

namespace heed::jinja {

namespace {

using GlobalFunction = Value (*)(Machine&, const Arguments&);

Value range(Machine& m, const Arguments& a) {
  int64_t bounds[3] = {0, 0, 1};
  if (a.list.empty() || a.list.size() > 3) m.fail("range takes one to three integers");
  for (size_t i = 0; i < a.list.size(); ++i) {
    if (!a.list[i].is_whole()) m.fail("range takes integers, not " + a.list[i].type_name());
    bounds[a.list.size() == 1 ? 1 : i] = a.list[i].as_integer();
  }
  const auto [start, stop, step] = bounds;
  if (step == 0) m.fail("the step of range must not be zero");
  List out;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (out.size() >= 100'000) m.fail("range of more than 100000 numbers");
    out.push_back(Value::integer(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return m.list(std::move(out));
}

// namespace(...) and dict(...): mappings and named values.
Value mapping(Machine& m, const Arguments& a, bool is_namespace) {
  Dict dict;
  dict.is_namespace = is_namespace;
  for (const Value& v : a.list) {
    if (v.is_dict()) {
      for (const auto& [key, value] : v.as_dict().entries) set_entry(m, dict, key, value);
      continue;
    }
    for (const Value& pair : iterate(m, v)) {
      const List both = iterate(m, pair);
      if (both.size() != 2) m.fail("namespace and dict take a mapping, pairs or named values");
      set_entry(m, dict, both[0], both[1]);
    }
  }
  for (const auto& [key, value] : a.named) set_entry(m, dict, Value::text(key), value);
  return Value::dict(std::move(dict));
}

Value raise_exception(Machine& m, const Arguments& a) {
  m.fail("the template says: " + (a.list.empty() ? "" : a.list[0].str()));
}

Value strftime_now(Machine& m, const Arguments& a) {
  if (a.list.size() != 1 || !a.list[0].is_text()) m.fail("strftime_now takes one format");
  std::tm now{};
  if (m.options.now) {
    now = *m.options.now;
  } else {
    const std::time_t clock = std::time(nullptr);
    localtime_r(&clock, &now);
  }
  const std::string& format = a.list[0].as_text();
  if (format.empty()) return m.text("");
  std::string text(format.size() * 16 + 64, '\0');
  text.resize(std::strftime(text.data(), text.size(), format.c_str(), &now));
  return m.text(std::move(text));
}

// joiner(sep): a function that gives nothing at its first call, then the separator.
Value joiner(Machine& m, const Arguments& a) {
  const Value separator = a.list.empty() ? m.text(", ") : a.list[0];
  return Value::function([separator, used = std::make_shared<bool>(false)](const Arguments&) {
    return std::exchange(*used, true) ? separator : Value::text("");
  });
}

struct Row {
  std::string_view name;
  GlobalFunction run;
};

constexpr Row kGlobals[] = {
    {"range", range},
    {"namespace", [](Machine& m, const Arguments& a) { return mapping(m, a, true); }},
    {"dict", [](Machine& m, const Arguments& a) { return mapping(m, a, false); }},
    {"joiner", joiner},
    {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
};

}  // namespace

Value global_function(Machine& machine, const std::string& name) {
  for (const Row& row : kGlobals) {
    if (row.name != name) continue;
    return Value::function(
        [m = &machine, run = row.run](const Arguments& arguments) { return run(*m, arguments); });
  }
  return Value::undefined(name);
}

}  // namespace heed::jinja
