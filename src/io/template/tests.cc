// The tests, `x is name(...)`. Behaviour: jinja2/tests.py.
#include <algorithm>

#include "io/describe.h"
#include "io/template/call.h"
#include "io/template/interpreter.h"
#include "io/tokenizer/unicode.h"

namespace heed::jinja {

namespace {

using TestFunction = bool (*)(Machine&, const Value&, Call&);

bool is_sequence(const Value& v) {
  return v.is_text() || v.is_list() || v.is_undefined() ||
         (v.is_dict() && !v.as_dict().is_namespace);
}

bool divides(Machine& m, const Value& v, int64_t by) {
  if (!v.is_whole() || by == 0) m.fail("the tests odd, even and divisibleby need integers");
  return by == -1 || v.as_integer() % by == 0;
}

template <typename Holds>
bool ordered(Machine& m, const Value& v, Call& c, Holds&& holds) {
  return holds(compare(m, v, c.need(0, "other")));
}
bool equal(Machine&, const Value& v, Call& c) { return v.equals(c.need(0, "other")); }
bool unequal(Machine&, const Value& v, Call& c) { return !v.equals(c.need(0, "other")); }
bool less(Machine& m, const Value& v, Call& c) {
  return ordered(m, v, c, [](int order) { return order < 0; });
}
bool less_equal(Machine& m, const Value& v, Call& c) {
  return ordered(m, v, c, [](int order) { return order <= 0; });
}
bool greater(Machine& m, const Value& v, Call& c) {
  return ordered(m, v, c, [](int order) { return order > 0; });
}
bool greater_equal(Machine& m, const Value& v, Call& c) {
  return ordered(m, v, c, [](int order) { return order >= 0; });
}

struct Row {
  std::string_view name;
  TestFunction run;
};

constexpr Row kTests[] = {
    {"defined", [](Machine&, const Value& v, Call&) { return !v.is_undefined(); }},
    {"undefined", [](Machine&, const Value& v, Call&) { return v.is_undefined(); }},
    {"none", [](Machine&, const Value& v, Call&) { return v.is_none(); }},
    {"string", [](Machine&, const Value& v, Call&) { return v.is_text(); }},
    {"escaped", [](Machine&, const Value& v, Call&) { return v.is_markup(); }},
    {"mapping",
     [](Machine&, const Value& v, Call&) { return v.is_dict() && !v.as_dict().is_namespace; }},
    {"sequence", [](Machine&, const Value& v, Call&) { return is_sequence(v); }},
    {"iterable", [](Machine&, const Value& v, Call&) { return is_sequence(v); }},
    {"number", [](Machine&, const Value& v, Call&) { return v.is_number(); }},
    {"integer", [](Machine&, const Value& v, Call&) { return v.is_integer(); }},
    {"float", [](Machine&, const Value& v, Call&) { return v.is_real(); }},
    {"boolean", [](Machine&, const Value& v, Call&) { return v.is_boolean(); }},
    {"true", [](Machine&, const Value& v, Call&) { return v.is_boolean() && v.truth(); }},
    {"false", [](Machine&, const Value& v, Call&) { return v.is_boolean() && !v.truth(); }},
    {"callable",
     [](Machine&, const Value& v, Call&) { return v.is_function() || v.is_undefined(); }},
    {"filter", [](Machine&, const Value& v, Call&) { return is_filter(v.str()); }},
    {"test", [](Machine&, const Value& v, Call&) { return is_test(v.str()); }},
    {"eq", equal},
    {"==", equal},
    {"equalto", equal},
    {"ne", unequal},
    {"!=", unequal},
    {"lt", less},
    {"<", less},
    {"lessthan", less},
    {"le", less_equal},
    {"<=", less_equal},
    {"gt", greater},
    {">", greater},
    {"greaterthan", greater},
    {"ge", greater_equal},
    {">=", greater_equal},
    {"sameas", [](Machine&, const Value& v, Call& c) { return v.same_object(c.need(0, "other")); }},
    {"in", [](Machine& m, const Value& v, Call& c) { return contains(m, c.need(0, "seq"), v); }},
    {"upper",
     [](Machine&, const Value& v, Call&) {
       return v.str() == upper(v.str()) && v.str() != unicode::lower(v.str());
     }},
    {"lower",
     [](Machine&, const Value& v, Call&) {
       return v.str() == unicode::lower(v.str()) && v.str() != upper(v.str());
     }},
    {"odd", [](Machine& m, const Value& v, Call&) { return !divides(m, v, 2); }},
    {"even", [](Machine& m, const Value& v, Call&) { return divides(m, v, 2); }},
    {"divisibleby",
     [](Machine& m, const Value& v, Call& c) { return divides(m, v, c.integer(0, "num", 0)); }},
};

const Row* find_test(std::string_view name) {
  const auto found = std::find_if(std::begin(kTests), std::end(kTests),
                                  [&](const Row& row) { return row.name == name; });
  return found == std::end(kTests) ? nullptr : found;
}

}  // namespace

bool is_test(std::string_view name) { return find_test(name) != nullptr; }

bool apply_test(Machine& machine, const std::string& name, const Arguments& arguments) {
  machine.charge();
  const Row* row = find_test(name);
  if (!row) machine.fail(fmt::format("the test \"{}\" is not supported", printable(name)));
  Call call(machine, "the test \"" + name + "\"", arguments, 1);
  const bool truth = row->run(machine, arguments.list[0], call);
  call.done();
  return truth;
}

}  // namespace heed::jinja
