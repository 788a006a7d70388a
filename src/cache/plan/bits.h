// Bits in plan files: "k_bits" and "v_bits" of a program, and the centres of the heads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/program.h"
#include "io/json.h"

namespace heed {

// First positions of a head that keeps everything in few bits which stay exact, where its entry
// does not say.
inline constexpr int64_t kExactRows = 16;

// Bits that a number of K and of V is kept in: 16 (as the cache's dtype says), 8, 6, 5, 4, 3 or 2.
struct Bits {
  int k = 16, v = 16;
  bool few() const { return k < 16 || v < 16; }
};

// "k_bits" and "v_bits" of an entry. Throws Error naming `where` and the key for other numbers.
Bits read_bits(const Json& entry, const std::string& where);
// Writes those below 16.
void put_bits(Json& entry, const Bits& bits);
void set_bits(HeadProgram& program, const Bits& bits);
Bits bits_of(const HeadProgram& program);
// "-k4v3"; empty where both are 16.
std::string bits_id(const HeadProgram& program);

// [layer][KV head]; null: none.
using Centres = std::vector<std::vector<std::shared_ptr<const Centre>>>;

// {"k": [[...]], "v": [[...]]}: for each layer and head its numbers as float16, four hexadecimal
// digits each; "" where a head has none. Throws Error naming `where` for what is none of that, or
// not finite.
Centres read_centres(const Json& json, const std::string& where);
Json to_json(const Centres& centres);

}  // namespace heed
