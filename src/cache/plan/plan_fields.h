// What plan files refuse, in one wording.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>

#include "io/describe.h"
#include "io/error.h"
#include "io/json.h"

namespace heed {

// Far beyond any context; keeps products of sizes within 63 bits.
inline constexpr int64_t kMaxTokens = int64_t{1} << 40;

// Throws Error for a key that is not in the list: a misspelt one must not pass for its default.
inline void refuse_unknown_keys(const Json& object, std::initializer_list<std::string_view> known,
                                const std::string& where) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw Error("{}: the key '{}' is not known here", printable(where), printable(key));
    }
  }
}

template <typename T>
T in_range(T value, T low, T high, const char* key, const std::string& where) {
  if (!(value >= low && value <= high)) {
    throw Error("{}: '{}' must lie between {} and {}, found {}", printable(where), key, low, high,
                value);
  }
  return value;
}

}  // namespace heed
