// Mutates JSON as a tree: most random changes to its bytes would only ever meet the JSON reader.
// Half of the inputs are still changed as bytes. Include it in a target whose input is JSON behind
// HEED_JSON_PREFIX other bytes.
#pragma once

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#ifndef HEED_JSON_PREFIX
#define HEED_JSON_PREFIX 0
#endif

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace heed::fuzz {

using nlohmann::json;

inline void collect(json& value, std::vector<json*>& nodes) {
  nodes.push_back(&value);
  if (value.is_structured()) {
    for (json& inner : value) collect(inner, nodes);
  }
}

inline json interesting(std::minstd_rand& random) {
  static const json values = json::parse(R"([
      null, true, false, 0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 128, 255, 256, 4095, 4096, 10000, 65536, 1048576,
      2147483647, 2147483648, 4294967295, 4294967296, 9223372036854775807, -9223372036854775808,
      18446744073709551615, 0.0, -0.0, 0.5, 1.5, -1.5, 1e-320, 1e300, -1e300, 1e19,
      "", " ", "a", "ab", "\u2581", "\u00e9", "0", "\n", [], {}, [0], [[]], [1, 2], ["a", "b"]])");
  return values[random() % values.size()];
}

inline json mutated_scalar(const json& value, std::minstd_rand& random) {
  if (value.is_number_integer() && random() % 2) {
    return value.get<int64_t>() / 2 + static_cast<int64_t>(random() % 7) - 3;
  }
  if (value.is_number_float() && random() % 2) return value.get<double>() * -2.5;
  if (value.is_string() && random() % 2) {
    std::string text = value.get<std::string>();
    const size_t size = text.size();
    text.resize(size + 16);
    text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(text.data()), size, text.size()));
    return text;
  }
  return interesting(random);
}

inline void mutate_tree(json& root, std::minstd_rand& random) {
  std::vector<json*> nodes;
  collect(root, nodes);
  const size_t at = random() % nodes.size();
  json& node = *nodes[at];
  json other = *nodes[random() % nodes.size()];
  switch (random() % 6) {
    case 0:
      node = std::move(other);
      return;
    case 1:  // drop an element, or empty a scalar's place
      if (node.is_structured() && !node.empty()) {
        auto victim = node.begin();
        std::advance(victim, random() % node.size());
        node.erase(victim);
        return;
      }
      break;
    case 2:
      if (node.is_array()) {
        node.insert(node.begin() + static_cast<int64_t>(random() % (node.size() + 1)),
                    random() % 2 ? std::move(other) : interesting(random));
        return;
      }
      if (node.is_object()) {
        json* from = nodes[random() % nodes.size()];
        if (from->is_object() && !from->empty()) {
          auto entry = from->begin();
          std::advance(entry, random() % from->size());
          const std::string key = entry.key();
          json value = *entry;
          node[key] = std::move(value);
          return;
        }
      }
      break;
    default:
      break;
  }
  node = mutated_scalar(node.is_structured() ? json() : node, random);
}

}  // namespace heed::fuzz

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  using namespace heed::fuzz;
  std::minstd_rand random(seed + 1);
  random.discard(2);
  constexpr size_t kPrefix = HEED_JSON_PREFIX;
  if (random() % 2 == 0 || size <= kPrefix) return LLVMFuzzerMutate(data, size, max_size);
  int depth = 0;  // the tree is walked by recursion
  const auto text = std::string_view(reinterpret_cast<const char*>(data) + kPrefix, size - kPrefix);
  for (const char c : text) depth += c == '[' || c == '{';
  if (depth > 500) return LLVMFuzzerMutate(data, size, max_size);
  json root = json::parse(text, nullptr, false);
  if (root.is_discarded()) return LLVMFuzzerMutate(data, size, max_size);
  for (unsigned times = 1 + random() % 3; times > 0; --times) mutate_tree(root, random);
  const std::string out = root.dump(-1, ' ', false, json::error_handler_t::replace);
  if (out.size() + kPrefix > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data + kPrefix, out.data(), out.size());
  return kPrefix + out.size();
}
