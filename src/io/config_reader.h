// config.json, key by key.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "io/error.h"
#include "io/json.h"

namespace heed {

inline constexpr int64_t kMostLayers = 10'000;
inline constexpr int64_t kMostHidden = int64_t{1} << 20;
inline constexpr int64_t kMostPositions = int64_t{1} << 32;

// Sizes that others are made from are checked before that. Throws Error naming `path` and `what`.
void check_size(const std::string& path, const char* what, int64_t value, int64_t most);

// One JSON object of the file, with the name under which messages know it. A key that is null
// counts as absent.
class ConfigReader {
 public:
  ConfigReader(const Json& object, std::string name) : object_(object), name_(std::move(name)) {
    if (!object_.is_object()) {
      throw Error("{}: must be a JSON object, found {}", name_, object_.type_name());
    }
  }

  bool mentions(const char* key) const { return object_.contains(key); }
  bool has(const char* key) const { return find_field(object_, key, name_) != nullptr; }
  const Json& at(const char* key) const { return get_field(object_, key, name_); }
  int64_t required(const char* key) const { return get_int(object_, key, name_); }
  int64_t integer(const char* key, int64_t fallback) const {
    return get_int(object_, key, name_, fallback);
  }
  double number(const char* key, double fallback) const {
    return get_float(object_, key, name_, fallback);
  }
  // A size, or a list of it for each layer, all equal.
  int64_t size(const char* key, int64_t layers) const {
    if (!at(key).is_array()) return required(key);
    const std::vector<int64_t> sizes = per_layer(key, layers);
    for (int64_t l = 1; l < layers; ++l) {
      if (sizes[l] != sizes[0]) {
        throw Error(
            "{}: \"{}\" of layer {} is {}, of layer 0 {}; models whose layers differ are not read",
            name_, key, l, sizes[l], sizes[0]);
      }
    }
    return sizes[0];
  }
  int64_t size(const char* key, int64_t layers, int64_t fallback) const {
    return has(key) ? size(key, layers) : fallback;
  }
  // A list with one number for each layer; null counts as 0.
  std::vector<int64_t> per_layer(const char* key, int64_t layers) const {
    const Json& list = at(key);
    if (!list.is_array() || static_cast<int64_t>(list.size()) != layers) {
      throw Error("{}: \"{}\" is not a list of {} entries, one a layer", name_, key, layers);
    }
    std::vector<int64_t> out;
    for (const Json& value : list) out.push_back(value.is_null() ? 0 : as_int(value, key, name_));
    return out;
  }
  bool flag(const char* key, bool fallback) const {
    return get_bool(object_, key, name_, fallback);
  }
  std::string text(const char* key, const std::string& fallback) const {
    return get_string(object_, key, name_, fallback);
  }
  std::vector<double> numbers(const char* key) const {
    return has(key) ? get_floats(object_, key, name_) : std::vector<double>{};
  }
  // One id or a list of ids.
  std::vector<int64_t> ids(const char* key) const {
    const Json* v = find_field(object_, key, name_);
    if (!v) return {};
    if (v->is_array()) return get_ints(object_, key, name_);
    return {get_int(object_, key, name_)};
  }
  const std::string& name() const { return name_; }

 private:
  const Json& object_;
  std::string name_;
};

// "silu", "gelu", "gelu_tanh" or "relu". Throws Error for a name that is none of theirs.
std::string activation_name(const std::string& name, const std::string& path);

}  // namespace heed
