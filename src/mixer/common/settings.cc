#include "mixer/settings.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "io/error.h"

namespace heed::mixer {
namespace {

std::vector<std::string> split_list(const std::string& text, const char* separators) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find_first_of(separators, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::optional<double> read_number(const std::string& text) {
  try {
    size_t end = 0;
    const double value = std::stod(text, &end);
    if (end == text.size() && std::isfinite(value)) return value;
  } catch (const std::exception&) {
  }
  return std::nullopt;
}

std::optional<double> read_whole(const std::string& text) {
  const std::optional<double> value = read_number(text);
  if (!value || *value != std::floor(*value) || std::abs(*value) > 1e15) return std::nullopt;
  return value;
}

bool in_range(const SettingSpec& spec, double value) {
  return value >= spec.least && value <= spec.most;
}

bool is_word(const SettingSpec& spec, const std::string& text) {
  return std::find(spec.words.begin(), spec.words.end(), text) != spec.words.end();
}

std::optional<Value> parse_list(const SettingSpec& spec, const std::string& text) {
  std::vector<int64_t> numbers;
  for (const std::string& part : split_list(text, "x,")) {
    const auto word = std::find(spec.words.begin(), spec.words.end(), part);
    const std::optional<double> number = word == spec.words.end()
                                             ? read_whole(part)
                                             : static_cast<double>(word - spec.words.begin());
    if (!number || !in_range(spec, *number)) return std::nullopt;
    numbers.push_back(static_cast<int64_t>(*number));
  }
  return Value(numbers);
}

std::optional<Value> parse(const SettingSpec& spec, const std::string& text) {
  switch (spec.type) {
    case SettingType::kBool:
      if (text == "true" || text == "1") return Value(true);
      if (text == "false" || text == "0") return Value(false);
      return std::nullopt;
    case SettingType::kWord:
      return is_word(spec, text) ? std::optional<Value>(text) : std::nullopt;
    case SettingType::kInts:
      return parse_list(spec, text);
    case SettingType::kWords: {
      const std::vector<std::string> parts = split_list(text, ",");
      const bool known = std::all_of(parts.begin(), parts.end(),
                                     [&](const std::string& part) { return is_word(spec, part); });
      return known ? std::optional<Value>(parts) : std::nullopt;
    }
    default: {
      const bool whole = spec.type == SettingType::kInt;
      const std::optional<double> value = whole ? read_whole(text) : read_number(text);
      if (!value || !in_range(spec, *value)) return std::nullopt;
      return whole ? Value(static_cast<int64_t>(*value)) : Value(*value);
    }
  }
}

const char* type_name(const Value& value) {
  static constexpr const char* names[] = {"a bool", "an int",         "a number",
                                          "a word", "a list of ints", "a list of words"};
  return names[value.index()];
}

}  // namespace

std::string expected(const SettingSpec& spec) {
  std::string text;
  switch (spec.type) {
    case SettingType::kBool:
      return "true or false";
    case SettingType::kWord:
      return fmt::format("one of {}", fmt::join(spec.words, ", "));
    case SettingType::kWords:
      return fmt::format("some of {}, separated by commas", fmt::join(spec.words, ", "));
    case SettingType::kInts:
      text = "whole numbers as 7x13";
      if (!spec.words.empty()) text += fmt::format(" ({})", fmt::join(spec.words, ", "));
      break;
    case SettingType::kInt:
      text = "a whole number";
      break;
    default:
      text = "a number";
  }
  if (std::isfinite(spec.least) && std::isfinite(spec.most)) {
    return text + fmt::format(" from {} to {}", spec.least, spec.most);
  }
  if (std::isfinite(spec.least)) text += fmt::format(" of at least {}", spec.least);
  if (std::isfinite(spec.most)) text += fmt::format(" of at most {}", spec.most);
  return text;
}

void Settings::set(const SettingSpec& spec, const std::string& text) {
  const std::optional<Value> value = parse(spec, text);
  if (!value) throw UsageError("setting {}={}: expected {}", spec.name, text, expected(spec));
  values_[spec.name] = *value;
}

void Settings::set_default(const SettingSpec& spec) {
  std::optional<Value> value = parse(spec, spec.default_value);
  // "0, off": the value, then what it means.
  const size_t comma = spec.default_value.find(", ");
  if (!value && comma != std::string::npos)
    value = parse(spec, spec.default_value.substr(0, comma));
  if (value) values_[spec.name] = *value;
}

const Value* Settings::find(const std::string& name) const {
  const auto it = values_.find(name);
  return it == values_.end() ? nullptr : &it->second;
}

template <typename T>
const T& Settings::get(const std::string& name) const {
  const Value* value = find(name);
  if (value == nullptr) throw Error("setting {} has no value; its card must give one", name);
  if (const T* typed = std::get_if<T>(value)) return *typed;
  throw Error("setting {} is {}, and was read as another type", name, type_name(*value));
}

bool Settings::flag(const std::string& name, std::optional<bool> fallback) const {
  return has(name) || !fallback ? get<bool>(name) : *fallback;
}

int64_t Settings::integer(const std::string& name, std::optional<int64_t> fallback) const {
  return has(name) || !fallback ? get<int64_t>(name) : *fallback;
}

double Settings::number(const std::string& name, double fallback) const {
  return has(name) ? get<double>(name) : fallback;
}

std::optional<double> Settings::number(const std::string& name) const {
  return has(name) ? std::optional<double>(get<double>(name)) : std::nullopt;
}

const std::string& Settings::word(const std::string& name) const { return get<std::string>(name); }

const std::vector<int64_t>& Settings::ints(const std::string& name) const {
  return get<std::vector<int64_t>>(name);
}

const std::vector<std::string>& Settings::words(const std::string& name) const {
  return get<std::vector<std::string>>(name);
}

std::vector<int64_t> Settings::axes(const std::string& name, size_t rank) const {
  std::vector<int64_t> values = ints(name);
  if (values.size() == 1) values.assign(rank, values.front());
  if (values.size() != rank) {
    throw UsageError("setting {}={}: expected one number, or one for each of the {} axes", name,
                     text(name), rank);
  }
  return values;
}

std::string Settings::text(const std::string& name) const {
  const Value* value = find(name);
  if (value == nullptr) return "";
  struct Visitor {
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(int64_t v) const { return std::to_string(v); }
    std::string operator()(double v) const { return fmt::format("{}", v); }
    std::string operator()(const std::string& v) const { return v; }
    std::string operator()(const std::vector<int64_t>& v) const {
      return fmt::format("{}", fmt::join(v, "x"));
    }
    std::string operator()(const std::vector<std::string>& v) const {
      return fmt::format("{}", fmt::join(v, ","));
    }
  };
  return std::visit(Visitor{}, *value);
}

std::map<std::string, double> Settings::names() const {
  std::map<std::string, double> all;
  for (const auto& [name, value] : values_) {
    if (const auto* flag = std::get_if<bool>(&value)) all[name] = *flag ? 1 : 0;
    if (const auto* whole = std::get_if<int64_t>(&value)) all[name] = static_cast<double>(*whole);
    if (const auto* number = std::get_if<double>(&value)) all[name] = *number;
    if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) {
      double product = 1;
      for (size_t i = 0; i < list->size(); ++i) {
        product *= static_cast<double>((*list)[i]);
        all[fmt::format("{}[{}]", name, i)] = static_cast<double>((*list)[i]);
      }
      all[name] = product;
    }
  }
  return all;
}

}  // namespace heed::mixer
