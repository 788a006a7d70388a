// See bits.h.
#include "cache/plan/bits.h"

#include <fmt/format.h>

#include <cmath>

#include "cache/plan/plan_fields.h"
#include "kernel/quant/quant.h"
#include "kernel/simd_dtype.h"

namespace heed {
namespace {

constexpr size_t kMaxCentre = 4096;  // numbers

int read_one(const Json& entry, const char* key, const std::string& where) {
  const int64_t bits = get_int(entry, key, where, 16);
  if (bits == 16 || (bits > 0 && bits < 16 && kernel::quant_bits(static_cast<int>(bits)))) {
    return static_cast<int>(bits);
  }
  throw Error("{}: '{}' must be 16, 8, 6, 5, 4, 3 or 2, found {}", printable(where), key, bits);
}

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

std::vector<float> read_numbers(const std::string& text, const std::string& where) {
  std::vector<float> out;
  if (text.size() % 4 != 0 || text.size() > 4 * kMaxCentre) {
    throw Error("{}: {} hexadecimal digits are no row of at most {} float16 numbers",
                printable(where), text.size(), kMaxCentre);
  }
  for (size_t i = 0; i < text.size(); i += 4) {
    int half = 0;
    for (size_t j = 0; j < 4; ++j) {
      const int d = digit(text[i + j]);
      if (d < 0) {
        throw Error("{}: '{}' is no hexadecimal digit", printable(where),
                    printable(text.substr(i + j, 1)));
      }
      half = half * 16 + d;
    }
    out.push_back(kernel::float16_to_float(static_cast<uint16_t>(half)));
    if (!std::isfinite(out.back())) throw Error("{}: a number is not finite", printable(where));
  }
  return out;
}

std::string write_numbers(const std::vector<float>& x) {
  std::string out;
  for (const float f : x) out += fmt::format("{:04x}", kernel::float_to_float16(f));
  return out;
}

}  // namespace

Bits read_bits(const Json& entry, const std::string& where) {
  return {read_one(entry, "k_bits", where), read_one(entry, "v_bits", where)};
}

void put_bits(Json& entry, const Bits& bits) {
  if (bits.k < 16) entry["k_bits"] = bits.k;
  if (bits.v < 16) entry["v_bits"] = bits.v;
}

void set_bits(HeadProgram& program, const Bits& bits) {
  program.k_bits = static_cast<int8_t>(bits.k);
  program.v_bits = static_cast<int8_t>(bits.v);
}

Bits bits_of(const HeadProgram& program) { return {program.k_bits, program.v_bits}; }

std::string bits_id(const HeadProgram& program) {
  return program.in_few_bits() ? fmt::format("-k{}v{}", program.k_bits, program.v_bits) : "";
}

Centres read_centres(const Json& json, const std::string& where) {
  refuse_unknown_keys(json, {"k", "v"}, where);
  std::vector<std::vector<Centre>> all;
  for (const auto& [side, key] : {std::pair(&Centre::k, "k"), std::pair(&Centre::v, "v")}) {
    if (find_field(json, key, where) == nullptr) continue;
    const Json& rows = get_array(json, key, where);
    if (all.empty()) all.resize(rows.size());
    if (rows.size() != all.size()) {
      throw Error("{}: '{}' has {} layers, not {}", printable(where), key, rows.size(), all.size());
    }
    for (size_t l = 0; l < rows.size(); ++l) {
      const std::string layer = fmt::format("{}[{}]", key, l);
      if (!rows[l].is_array()) throw Error("{}: '{}' must be an array", printable(where), layer);
      if (all[l].empty()) all[l].resize(rows[l].size());
      if (rows[l].size() != all[l].size()) {
        throw Error("{}: '{}' has {} heads, not {}", printable(where), layer, rows[l].size(),
                    all[l].size());
      }
      for (size_t h = 0; h < rows[l].size(); ++h) {
        const std::string name = fmt::format("{}[{}]", layer, h);
        all[l][h].*side =
            read_numbers(as_string(rows[l][h], name, where), fmt::format("{}: '{}'", where, name));
      }
    }
  }
  Centres out;
  for (std::vector<Centre>& row : all) {
    auto& heads = out.emplace_back();
    for (Centre& centre : row) {
      const bool none = centre.k.empty() && centre.v.empty();
      heads.push_back(none ? nullptr : std::make_shared<const Centre>(std::move(centre)));
    }
  }
  return out;
}

Json to_json(const Centres& centres) {
  Json json = {{"k", Json::array()}, {"v", Json::array()}};
  for (const auto& row : centres) {
    Json k = Json::array(), v = Json::array();
    for (const auto& centre : row) {
      k.push_back(centre ? write_numbers(centre->k) : "");
      v.push_back(centre ? write_numbers(centre->v) : "");
    }
    json["k"].push_back(std::move(k));
    json["v"].push_back(std::move(v));
  }
  return json;
}

}  // namespace heed
