// The operators of expressions, with Python's meaning.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "io/template/call.h"
#include "io/template/interpreter.h"

namespace heed::jinja {

namespace {

// Integers, rounded down where they divide.
Value whole_arithmetic(Machine& machine, const std::string& op, int64_t x, int64_t y) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") overflow = __builtin_add_overflow(x, y, &result);
  if (op == "-") overflow = __builtin_sub_overflow(x, y, &result);
  if (op == "*") overflow = __builtin_mul_overflow(x, y, &result);
  if (op == "//" || op == "%") {
    if (y == -1) {
      overflow = op == "//" && __builtin_sub_overflow(int64_t{0}, x, &result);
    } else {
      const int64_t quotient = x / y - (x % y != 0 && (x % y < 0) != (y < 0));
      result = op == "//" ? quotient : x - quotient * y;
    }
  }
  if (op == "**") {
    // Powers of -1, 0 and 1 need no more factors than their parity tells.
    const int64_t factors = x >= -1 && x <= 1 && y > 2 ? 2 + y % 2 : y;
    result = 1;
    for (int64_t i = 0; i < factors && !overflow; ++i) {
      overflow = __builtin_mul_overflow(result, x, &result);
    }
  }
  if (overflow) machine.fail("a number is too large");
  return Value::integer(result);
}

Value arithmetic(Machine& machine, const std::string& op, const Value& a, const Value& b) {
  const bool divides = op == "/" || op == "//" || op == "%";
  if (divides && b.as_real() == 0) machine.fail("division by zero");
  const bool whole = a.is_whole() && b.is_whole() && op != "/";
  if (whole && !(op == "**" && b.as_integer() < 0)) {
    return whole_arithmetic(machine, op, a.as_integer(), b.as_integer());
  }
  const double x = a.as_real(), y = b.as_real();
  if (op == "+") return Value::real(x + y);
  if (op == "-") return Value::real(x - y);
  if (op == "*") return Value::real(x * y);
  if (op == "/") return Value::real(x / y);
  if (op == "//") return Value::real(std::floor(x / y));
  if (op == "**") {
    if (x == 0 && y < 0) machine.fail("zero to a negative power");
    return Value::real(std::pow(x, y));
  }
  return Value::real(x - std::floor(x / y) * y);
}

// How often a text or list of `size` bytes is repeated; Error where that is too much.
int64_t repetitions(Machine& machine, const Value& times, size_t size, const char* what) {
  const int64_t count = std::max<int64_t>(0, times.as_integer());
  const int64_t unit = static_cast<int64_t>(size);
  if (unit > 0 && count > machine.options.max_bytes / unit) machine.fail(what);
  return unit > 0 ? count : 0;
}

Value repeat(Machine& machine, const Value& unit, const Value& times) {
  if (unit.is_list()) {
    const int64_t count =
        repetitions(machine, times, unit.as_list().size() * sizeof(Value), "a list is too long");
    List items;
    for (int64_t i = 0; i < count; ++i) {
      items.insert(items.end(), unit.as_list().begin(), unit.as_list().end());
    }
    return machine.list(std::move(items), unit.is_tuple());
  }
  const int64_t count =
      repetitions(machine, times, unit.as_text().size(), "the template makes too much text");
  std::string out;
  machine.charge(count * static_cast<int64_t>(unit.as_text().size()));
  for (int64_t i = 0; i < count; ++i) out += unit.as_text();
  return machine.text_like(unit, std::move(out));
}

}  // namespace

Value binary(Machine& machine, const std::string& op, const Value& a, const Value& b) {
  if (op == "~") return machine.text(a.str() + b.str());
  for (const Value* side : {&a, &b}) {
    if (side->is_undefined()) {
      machine.fail(fmt::format("\"{}\" is undefined", side->undefined_name()));
    }
  }
  if (op == "+" && a.is_text() && b.is_text()) {
    if (a.is_markup() == b.is_markup()) return machine.text_like(a, a.as_text() + b.as_text());
    // Beside markup, plain text is escaped.
    return Value::markup((a.is_markup() ? a.as_text() : escape(a.as_text())) +
                         (b.is_markup() ? b.as_text() : escape(b.as_text())));
  }
  if (op == "+" && a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
    List items = a.as_list();
    items.insert(items.end(), b.as_list().begin(), b.as_list().end());
    return machine.list(std::move(items), a.is_tuple());
  }
  if (op == "*" && (a.is_list() || a.is_text()) && b.is_whole()) return repeat(machine, a, b);
  if (op == "*" && (b.is_list() || b.is_text()) && a.is_whole()) return repeat(machine, b, a);
  if (op == "%" && a.is_text()) return format_percent(machine, a, b);
  if (!a.is_number() || !b.is_number()) {
    machine.fail(fmt::format("{} is not defined for {} and {}", op, a.type_name(), b.type_name()));
  }
  return arithmetic(machine, op, a, b);
}

Value unary(Machine& machine, const std::string& op, const Value& operand) {
  if (op == "not") return Value::boolean(!operand.truth());
  if (!operand.is_number()) {
    machine.fail(fmt::format("{} cannot be applied to {}", op, operand.type_name()));
  }
  if (operand.is_real()) return Value::real(op == "-" ? -operand.as_real() : operand.as_real());
  if (op == "-" && operand.as_integer() == INT64_MIN) machine.fail("overflow");
  return Value::integer(op == "-" ? -operand.as_integer() : operand.as_integer());
}

bool holds(Machine& machine, const std::string& op, const Value& a, const Value& b) {
  if (op == "==") return a.equals(b);
  if (op == "!=") return !a.equals(b);
  if (op == "in") return contains(machine, b, a);
  if (op == "not in") return !contains(machine, b, a);
  const int order = compare(machine, a, b);
  return op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
}

}  // namespace heed::jinja
