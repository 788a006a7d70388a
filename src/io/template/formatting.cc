// Python's two ways to format values: "%s %d" % values and "{} {:>5}".format(...).
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "io/describe.h"
#include "io/template/call.h"
#include "io/template/interpreter.h"

namespace heed::jinja {

namespace {

constexpr int64_t kMostWidth = 10'000;

// [[fill]align][sign][#][0][width][,][.precision][type]
struct Spec {
  char32_t fill = U' ';
  char align = 0, sign = '-', type = 0;
  bool alternative = false, commas = false;
  int64_t width = 0, precision = -1;
};

int64_t digits(Machine& machine, std::string_view text, size_t& at, int64_t fallback) {
  int64_t value = fallback;
  for (bool first = true; at < text.size() && std::isdigit(static_cast<unsigned char>(text[at]));
       first = false) {
    value = (first ? 0 : value) * 10 + (text[at++] - '0');
    if (value > kMostWidth) machine.fail("a format asks for more than 10000 characters");
  }
  return value;
}

Spec read_spec(Machine& machine, std::string_view text) {
  Spec spec;
  size_t at = 0, behind = 0;
  const auto is_align = [&](size_t i) {
    return i < text.size() && std::string_view("<>^=").find(text[i]) != std::string_view::npos;
  };
  if (!text.empty()) {
    const char32_t fill = unicode::next(text, behind);
    if (is_align(behind)) {
      spec.fill = fill;
      spec.align = text[behind];
      at = behind + 1;
    } else if (is_align(0)) {
      spec.align = text[at++];
    }
  }
  if (at < text.size() && (text[at] == '+' || text[at] == '-' || text[at] == ' ')) {
    spec.sign = text[at++];
  }
  if (at < text.size() && text[at] == '#') spec.alternative = text[at++] == '#';
  if (at < text.size() && text[at] == '0') {
    if (!spec.align) {
      spec.fill = U'0';
      spec.align = '=';
    }
    ++at;
  }
  spec.width = digits(machine, text, at, 0);
  if (at < text.size() && text[at] == ',') spec.commas = text[at++] == ',';
  if (at < text.size() && text[at] == '.') spec.precision = digits(machine, text, ++at, -1);
  if (at < text.size()) spec.type = text[at++];
  if (at < text.size()) {
    machine.fail(fmt::format("the format \"{}\" is not supported", printable(text)));
  }
  return spec;
}

std::string with_commas(std::string number) {
  size_t end = number.find_first_not_of("0123456789");
  if (end == std::string::npos) end = number.size();
  for (size_t at = end; at > 3;) number.insert(at -= 3, ",");
  return number;
}

// The digits of a number without its sign.
std::string magnitude(Machine& machine, const Value& value, const Spec& spec) {
  const char type = spec.type;
  const int precision = spec.precision < 0 ? 6 : static_cast<int>(spec.precision);
  const bool real_type = type && std::string_view("eEfFgG%").find(type) != std::string_view::npos;
  if (value.is_whole() && !real_type) {
    const int64_t number = value.as_integer();
    const uint64_t size =
        number < 0 ? -static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
    switch (type) {
      case 'x':
        return (spec.alternative ? "0x" : "") + fmt::format("{:x}", size);
      case 'X':
        return (spec.alternative ? "0X" : "") + fmt::format("{:X}", size);
      case 'o':
        return (spec.alternative ? "0o" : "") + fmt::format("{:o}", size);
      case 'b':
        return (spec.alternative ? "0b" : "") + fmt::format("{:b}", size);
      case 0:
      case 'd':
      case 'n':
        return fmt::format("{}", size);
      default:
        machine.fail(fmt::format("the format type \"{}\" does not fit a number", type));
    }
  }
  const double size = std::abs(value.as_real());
  switch (type) {
    case 'e':
      return fmt::format("{:.{}e}", size, precision);
    case 'E':
      return fmt::format("{:.{}E}", size, precision);
    case 'f':
    case 'F':
      return fmt::format("{:.{}f}", size, precision);
    case '%':
      return fmt::format("{:.{}f}%", size * 100, precision);
    case 'g':
      return fmt::format("{:.{}g}", size, std::max(precision, 1));
    case 'G':
      return fmt::format("{:.{}G}", size, std::max(precision, 1));
    case 0:
      return spec.precision < 0 ? real_text(size) : fmt::format("{:.{}g}", size, precision);
    default:
      machine.fail(fmt::format("the format type \"{}\" does not fit a number", type));
  }
}

std::string apply_spec(Machine& machine, const Value& value, const Spec& spec) {
  std::string sign, body;
  const bool number = value.is_number() && spec.type != 's' && !(value.is_boolean() && !spec.type);
  if (number) {
    body = magnitude(machine, value, spec);
    const bool negative = value.is_whole() ? value.as_integer() < 0 : std::signbit(value.as_real());
    sign = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
    if (spec.commas) body = with_commas(std::move(body));
  } else {
    if (spec.type && spec.type != 's') {
      machine.fail(
          fmt::format("the format type \"{}\" does not fit {}", spec.type, value.type_name()));
    }
    body = value.str();
    if (spec.precision >= 0) {
      size_t at = 0;
      for (int64_t n = 0; n < spec.precision && at < body.size(); ++n) unicode::next(body, at);
      body.resize(at);
    }
  }
  const char align = spec.align ? spec.align : number ? '>' : '<';
  if (align == '=') {
    const int64_t width = spec.width - static_cast<int64_t>(sign.size());
    return sign + pad(machine, body, width, spec.fill, Side::kRight);
  }
  if (align == '^') {  // the odd one behind
    const int64_t missing = spec.width - count_characters(sign + body);
    const std::string left =
        missing > 0 ? pad(machine, "", missing / 2, spec.fill, Side::kLeft) : "";
    return pad(machine, left + sign + body, spec.width, spec.fill, Side::kLeft);
  }
  return pad(machine, sign + body, spec.width, spec.fill,
             align == '<' ? Side::kLeft : Side::kRight);
}

// Takes the values of a % format one by one, or by name.
struct Values {
  Machine& machine;
  const Value& all;
  size_t next = 0;

  Value take() {
    if (!all.is_tuple()) {
      if (next++ > 0) machine.fail("not enough values for the format");
      return all;
    }
    if (next >= all.as_list().size()) machine.fail("not enough values for the format");
    return all.as_list()[next++];
  }
};

Value percent_field(Machine& machine, Values& values, std::string_view text, size_t& at) {
  Spec spec;
  std::optional<Value> named;
  if (at < text.size() && text[at] == '(') {
    const size_t close = text.find(')', at);
    if (close == std::string_view::npos || !values.all.is_dict()) {
      machine.fail("%(name) needs a closing parenthesis and a mapping of values");
    }
    const std::string name(text.substr(at + 1, close - at - 1));
    const Value* found = values.all.as_dict().find(name);
    if (!found) machine.fail(fmt::format("the format names \"{}\", which is not there", name));
    named = *found;
    at = close + 1;
  }
  for (; at < text.size() && std::string_view("#0- +").find(text[at]) != std::string_view::npos;
       ++at) {
    const char flag = text[at];
    if (flag == '-') spec.align = '<';
    if (flag == '#') spec.alternative = true;
    if (flag == '+' || (flag == ' ' && spec.sign != '+')) spec.sign = flag;
    if (flag == '0' && spec.align != '<') {
      spec.align = '=';
      spec.fill = U'0';
    }
  }
  if (spec.align == '<') spec.fill = U' ';
  spec.width = digits(machine, text, at, 0);
  if (at < text.size() && text[at] == '.') spec.precision = digits(machine, text, ++at, 0);
  if (at >= text.size()) machine.fail("the format ends behind a %");
  const char type = text[at++];
  if (type == '%') return Value::text("%");
  Value value = named ? *named : values.take();
  if (type == 's' || type == 'r') {
    spec.type = 's';
    if (spec.align == '=') spec.align = '>';
    if (!spec.align) spec.align = '>';
    spec.fill = U' ';
    if (type == 'r') value = Value::text(value.repr());
  } else if (std::string_view("diuxXoeEfFgG").find(type) != std::string_view::npos) {
    if (!value.is_number()) {
      machine.fail(fmt::format("%{} needs a number, not {}", type, value.type_name()));
    }
    const bool whole = std::string_view("diu").find(type) != std::string_view::npos;
    if (whole && value.is_real()) {
      if (!(std::abs(value.as_real()) < 9.2e18)) machine.fail("a number is too large");
      value = Value::integer(static_cast<int64_t>(value.as_real()));
    }
    if (value.is_boolean()) value = Value::integer(value.as_integer());
    spec.type = whole ? 'd' : type;
  } else {
    machine.fail(fmt::format("the format %{} is not supported", printable(std::string(1, type))));
  }
  const std::string out = apply_spec(machine, value, spec);
  return value.is_markup() ? Value::markup(out) : Value::text(out);
}

// The value that "0", "name" or "name.attribute[key]" stands for.
Value field(Machine& machine, std::string_view name, const Arguments& arguments, size_t& next) {
  const size_t end = std::min(name.find_first_of(".["), name.size());
  const std::string first(name.substr(0, end));
  Value value;
  size_t index = 0;
  const auto parsed = std::from_chars(first.data(), first.data() + first.size(), index);
  if (first.empty() || (parsed.ec == std::errc() && parsed.ptr == first.data() + first.size())) {
    if (first.empty()) index = next++;
    if (index >= arguments.list.size()) machine.fail("not enough values for the format");
    value = arguments.list[index];
  } else {
    const auto found = std::find_if(arguments.named.begin(), arguments.named.end(),
                                    [&](const auto& entry) { return entry.first == first; });
    if (found == arguments.named.end()) {
      machine.fail(fmt::format("the format names \"{}\", which is not there", printable(first)));
    }
    value = found->second;
  }
  if (end < name.size()) {
    machine.fail("a format that reaches into its values is not supported");
  }
  return value;
}

}  // namespace

Value format_percent(Machine& machine, const Value& format, const Value& all) {
  Values values{machine, all};
  const std::string& text = format.as_text();
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (text[at] != '%') {
      out += text[at++];
      continue;
    }
    ++at;
    const Value made = percent_field(machine, values, text, at);
    out += format.is_markup() && !made.is_markup() ? escape(made.as_text()) : made.as_text();
    machine.charge(static_cast<int64_t>(made.as_text().size()));
  }
  const size_t given = all.is_tuple()                   ? all.as_list().size()
                       : all.is_dict() || all.is_list() ? 0
                                                        : 1;
  if (values.next < given) machine.fail("not all values were used by the format");
  return machine.text_like(format, std::move(out));
}

Value format_braces(Machine& machine, const Value& format, const Arguments& arguments) {
  const std::string& text = format.as_text();
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at++];
    const bool doubled = at < text.size() && text[at] == c;
    if (c != '{' && c != '}') {
      out += c;
      continue;
    }
    if (doubled) {
      out += c;
      ++at;
      continue;
    }
    const size_t close = text.find('}', at);
    if (c == '}' || close == std::string::npos) machine.fail("a brace of a format stands alone");
    std::string_view inside = std::string_view(text).substr(at, close - at);
    at = close + 1;
    const size_t colon = std::min(inside.find(':'), inside.size());
    std::string_view name = inside.substr(0, colon);
    const std::string_view spec = colon < inside.size() ? inside.substr(colon + 1) : "";
    char conversion = 0;
    if (name.size() >= 2 && name[name.size() - 2] == '!') {
      conversion = name.back();
      name.remove_suffix(2);
    }
    Value value = field(machine, name, arguments, next);
    if (conversion == 'r') value = Value::text(value.repr());
    if (conversion == 's') value = Value::text(value.str());
    const std::string made = apply_spec(machine, value, read_spec(machine, spec));
    out += format.is_markup() && !value.is_markup() ? escape(made) : made;
    machine.charge(static_cast<int64_t>(made.size()));
  }
  return machine.text_like(format, std::move(out));
}

}  // namespace heed::jinja
