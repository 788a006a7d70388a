#include "io/template/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>

#include "io/tokenizer/unicode.h"

namespace heed::jinja {

namespace {

// Nested values deeper than this (namespaces can contain themselves) are cut off with "...".
constexpr int kMaxDepth = 100;

std::string quoted(const std::string& text) {
  const bool single = text.find('\'') != std::string::npos;
  const char quote = single && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const char32_t c = unicode::next(text, at);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c < 0x20 || c == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(c));
    } else if (c > 0x7F && (unicode::is_other(c) || unicode::is_whitespace(c))) {
      const unsigned code = static_cast<unsigned>(c);
      out += c < 0x100     ? fmt::format("\\x{:02x}", code)
             : c < 0x10000 ? fmt::format("\\u{:04x}", code)
                           : fmt::format("\\U{:08x}", code);
    } else {
      out.append(text, start, at - start);
    }
  }
  out += quote;
  return out;
}

std::string repr_at(const Value& value, int depth) {
  if (depth > kMaxDepth) return "...";
  if (value.is_markup()) return "Markup(" + quoted(value.as_text()) + ")";
  if (value.is_text()) return quoted(value.as_text());
  if (value.is_list()) {
    std::string out(1, value.is_tuple() ? '(' : '[');
    const List& items = value.as_list();
    for (size_t i = 0; i < items.size(); ++i) {
      if (i) out += ", ";
      out += repr_at(items[i], depth + 1);
    }
    if (value.is_tuple() && items.size() == 1) out += ',';
    out += value.is_tuple() ? ')' : ']';
    return out;
  }
  if (value.is_dict()) {
    std::string out = value.as_dict().is_namespace ? "<Namespace {" : "{";
    bool first = true;
    for (const auto& [key, item] : value.as_dict().entries) {
      if (!first) out += ", ";
      first = false;
      out += repr_at(key, depth + 1) + ": " + repr_at(item, depth + 1);
    }
    return out + (value.as_dict().is_namespace ? "}>" : "}");
  }
  if (value.is_undefined()) return "Undefined";
  return value.str();
}

bool equal_at(const Value& a, const Value& b, int depth) {
  if (depth > kMaxDepth) return false;
  if (a.is_number() && b.is_number()) {
    if (a.is_whole() && b.is_whole()) return a.as_integer() == b.as_integer();
    return a.as_real() == b.as_real();
  }
  if (a.is_text() && b.is_text()) return a.as_text() == b.as_text();
  if (a.is_none() || b.is_none()) return a.is_none() && b.is_none();
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (a.is_list() && b.is_list()) {
    const List &x = a.as_list(), &y = b.as_list();
    return a.is_tuple() == b.is_tuple() &&
           std::equal(x.begin(), x.end(), y.begin(), y.end(),
                      [&](const Value& p, const Value& q) { return equal_at(p, q, depth + 1); });
  }
  if (a.is_dict() && b.is_dict()) {
    const Dict &x = a.as_dict(), &y = b.as_dict();
    if (&x == &y) return true;
    if (x.is_namespace || y.is_namespace || x.entries.size() != y.entries.size()) return false;
    for (const auto& [key, value] : x.entries) {
      const Value* other = y.find(key);
      if (!other || !equal_at(value, *other, depth + 1)) return false;
    }
    return true;
  }
  return a.same_object(b);
}

std::string json_string(const std::string& text, bool ensure_ascii) {
  return nlohmann::json(text).dump(-1, ' ', ensure_ascii, nlohmann::json::error_handler_t::replace);
}

}  // namespace

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : entries) {
    if (name.is_text() && name.as_text() == key) return &value;
  }
  return nullptr;
}

const Value* Dict::find(const Value& key) const {
  if (key.is_text()) return find(std::string_view(key.as_text()));
  for (const auto& [name, value] : entries) {
    if (name.equals(key)) return &value;
  }
  return nullptr;
}

void Dict::set(const Value& key, Value value) {
  if (const Value* old = find(key)) {
    *const_cast<Value*>(old) = std::move(value);
  } else {
    entries.emplace_back(key, std::move(value));
  }
}

void Dict::set(std::string_view key, Value value) {
  set(Value::text(std::string(key)), std::move(value));
}

Value Value::from_json(const nlohmann::ordered_json& json) {
  if (json.is_null()) return none();
  if (json.is_boolean()) return boolean(json.get<bool>());
  if (json.is_number_unsigned() && json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return real(json.get<double>());
  }
  if (json.is_number_integer()) return integer(json.get<int64_t>());
  if (json.is_number()) return real(json.get<double>());
  if (json.is_string()) return text(json.get<std::string>());
  if (json.is_array()) {
    List items;
    for (const auto& item : json) items.push_back(from_json(item));
    return list(std::move(items));
  }
  Dict entries;
  for (const auto& [key, item] : json.items()) entries.set(key, from_json(item));
  return dict(std::move(entries));
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_boolean()) return std::get<bool>(data_);
  if (is_integer()) return as_integer() != 0;
  if (is_real()) return as_real() != 0;
  if (is_text()) return !as_text().empty();
  if (is_list()) return !as_list().empty();
  if (is_dict()) return as_dict().is_namespace || !as_dict().entries.empty();
  return true;
}

std::string Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_boolean()) return "bool";
  if (is_integer()) return "int";
  if (is_real()) return "float";
  if (is_text()) return flag_ ? "Markup" : "str";
  if (is_list()) return flag_ ? "tuple" : "list";
  if (is_dict()) return as_dict().is_namespace ? "Namespace" : "dict";
  return "function";
}

std::string Value::str() const {
  if (is_undefined()) return "";
  if (is_none()) return "None";
  if (is_boolean()) return std::get<bool>(data_) ? "True" : "False";
  if (is_integer()) return std::to_string(as_integer());
  if (is_real()) return real_text(as_real());
  if (is_text()) return as_text();
  if (is_function()) return "<function>";
  return repr_at(*this, 0);
}

std::string Value::repr() const { return repr_at(*this, 0); }

bool Value::same_object(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_list()) return std::get<ListPointer>(data_) == std::get<ListPointer>(other.data_);
  if (is_dict()) return std::get<DictPointer>(data_) == std::get<DictPointer>(other.data_);
  if (is_function()) {
    return std::get<FunctionPointer>(data_) == std::get<FunctionPointer>(other.data_);
  }
  return equal_at(*this, other, 0);
}

bool Value::is_hashable() const {
  if (is_dict()) return as_dict().is_namespace;
  if (!is_list()) return true;
  return is_tuple() && std::all_of(as_list().begin(), as_list().end(),
                                   [](const Value& v) { return v.is_hashable(); });
}

bool Value::equals(const Value& other) const { return equal_at(*this, other, 0); }

std::string real_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  // The fewest digits that read back; Python writes an exponent below 1e-4 and from 1e16 on.
  const double size = std::abs(value);
  const bool exponent = size != 0 && (size < 1e-4 || size >= 1e16);
  char digits[400];
  const auto end =
      std::to_chars(digits, digits + sizeof(digits), value,
                    exponent ? std::chars_format::scientific : std::chars_format::fixed);
  std::string text(digits, end.ptr);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

// A key as json.dumps() writes it: texts, numbers, booleans and none become texts.
static std::string json_key(const Value& key, const JsonStyle& style) {
  if (key.is_text()) return json_string(key.as_text(), style.ensure_ascii);
  if (!key.is_none() && !key.is_number()) throw std::invalid_argument(key.type_name());
  return '"' + to_json(key, style) + '"';
}

std::string to_json(const Value& value, const JsonStyle& style, int depth) {
  if (depth > kMaxDepth) throw std::invalid_argument("a value nested too deeply");
  if (value.is_none()) return "null";
  if (value.is_boolean()) return value.truth() ? "true" : "false";
  if (value.is_integer()) return std::to_string(value.as_integer());
  if (value.is_real()) {
    const double d = value.as_real();
    return std::isnan(d)   ? "NaN"
           : std::isinf(d) ? (d > 0 ? "Infinity" : "-Infinity")
                           : real_text(d);
  }
  if (value.is_text()) return json_string(value.as_text(), style.ensure_ascii);
  const bool is_dict = value.is_dict() && !value.as_dict().is_namespace;
  if (!value.is_list() && !is_dict) throw std::invalid_argument(value.type_name());
  const auto line = [&](int level) {
    return style.indent < 0 ? std::string()
                            : "\n" + std::string(static_cast<size_t>(style.indent * level), ' ');
  };
  std::string out;
  const auto add = [&](const std::string& item) {
    out += out.empty() ? "" : style.item_separator;
    out += line(depth + 1) + item;
  };
  if (value.is_list()) {
    for (const Value& item : value.as_list()) add(to_json(item, style, depth + 1));
    return out.empty() ? "[]" : "[" + out + line(depth) + "]";
  }
  auto entries = value.as_dict().entries;
  if (style.sort_keys) {
    const bool texts = std::all_of(entries.begin(), entries.end(),
                                   [](const auto& entry) { return entry.first.is_text(); });
    const bool numbers = std::all_of(entries.begin(), entries.end(),
                                     [](const auto& entry) { return entry.first.is_number(); });
    if (!texts && !numbers) throw std::invalid_argument("dict with keys that have no order");
    std::sort(entries.begin(), entries.end(), [&](const auto& a, const auto& b) {
      return texts ? a.first.as_text() < b.first.as_text() : a.first.as_real() < b.first.as_real();
    });
  }
  for (const auto& [key, item] : entries) {
    add(json_key(key, style) + style.key_separator + to_json(item, style, depth + 1));
  }
  return out.empty() ? "{}" : "{" + out + line(depth) + "}";
}

}  // namespace heed::jinja
