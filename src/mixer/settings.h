// The settings of one call of a core, checked against its row.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "mixer/card.h"

namespace heed::mixer {

class Settings {
 public:
  // Throws UsageError naming the setting and what was expected if the text is no such value.
  void set(const SettingSpec& spec, const std::string& text);
  // The default, where what is printed is a value ("64", "0, off", but not "1/sqrt(K)").
  void set_default(const SettingSpec& spec);

  bool has(const std::string& name) const { return values_.count(name) > 0; }
  // The value; `fallback` if there is none. Without a fallback, Error if there is none; and Error
  // if the setting is of another type: a mechanism that asks for what its card does not say.
  bool flag(const std::string& name, std::optional<bool> fallback = std::nullopt) const;
  int64_t integer(const std::string& name, std::optional<int64_t> fallback = std::nullopt) const;
  double number(const std::string& name, double fallback) const;
  std::optional<double> number(const std::string& name) const;
  const std::string& word(const std::string& name) const;
  bool is(const std::string& name, const std::string& value) const { return word(name) == value; }
  const std::vector<int64_t>& ints(const std::string& name) const;
  const std::vector<std::string>& words(const std::string& name) const;
  // One number an axis; a single one stands for all. UsageError if there are others than `rank`.
  std::vector<int64_t> axes(const std::string& name, size_t rank) const;

  // As it would be given: "true", "16", "7x13"; empty if it has no value.
  std::string text(const std::string& name) const;
  // The values that shapes may name: true is 1, a list its product, NAME[i] the entries.
  std::map<std::string, double> names() const;

 private:
  const Value* find(const std::string& name) const;
  template <typename T>
  const T& get(const std::string& name) const;
  std::map<std::string, Value> values_;
};

// What a setting may be, in words: "a whole number of at least 1", "one of relu, exp".
std::string expected(const SettingSpec& spec);

}  // namespace heed::mixer
