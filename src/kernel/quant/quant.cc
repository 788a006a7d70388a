// The layout and tables of quant.h, and the rotation.
#include "kernel/quant/quant.h"

#include <algorithm>
#include <cmath>

#include "kernel/simd_dtype.h"

namespace heed::kernel {
namespace quant {
namespace {

constexpr int8_t kTwo[16] = {-127, -38, 38, 127, -127, -38, 38, 127,
                             -127, -38, 38, 127, -127, -38, 38, 127};
constexpr int8_t kThree[16] = {-127, -79, -45, -14, 14, 45, 79, 127,
                               -127, -79, -45, -14, 14, 45, 79, 127};
constexpr int8_t kFour[16] = {-127, -96, -75, -58, -44, -31, -18, -6,
                              6,    18,  31,  44,  58,  75,  96,  127};
constexpr int8_t kFive[32] = {-127, -105, -90, -79, -70, -61, -54, -47, -41, -35, -29,
                              -24,  -18,  -13, -8,  -3,  3,   8,   13,  18,  24,  29,
                              35,   41,   47,  54,  61,  70,  79,  90,  105, 127};

}  // namespace

const int8_t* levels(int bits) {
  return bits == 2 ? kTwo : bits == 3 ? kThree : bits == 4 ? kFour : kFive;
}

float levels_a_unit(int bits) {
  constexpr float kUnits[] = {84.0827f, 59.0164f, 46.4761f, 38.9483f, 19.1045f};
  return kUnits[std::min(bits, 6) - 2];
}

}  // namespace quant

int quant_level(int bits, const uint8_t* row, int64_t dim, int64_t i) {
  const int64_t padded = (dim + 7) / 8 * 8, chunk = i / kQuantChunk;
  const int64_t n = std::min<int64_t>(kQuantChunk, padded - chunk * kQuantChunk);
  row += chunk * kQuantChunk / 8 * bits;
  i -= chunk * kQuantChunk;
  if (bits == 8) return static_cast<int8_t>(row[i]);
  int code = 0, shift = 0;
  if (bits >= 4) {
    code = row[i % (n / 2)] >> (4 * (i / (n / 2))) & 15;
    row += n / 2, shift = 4;
  }
  if (bits == 2 || bits == 3 || bits == 6) {
    code |= (row[i % (n / 4)] >> (2 * (i / (n / 4))) & 3) << shift;
    row += n / 4, shift += 2;
  }
  if (bits == 3 || bits == 5) code |= (row[i / 8] >> (i % 8) & 1) << shift;
  return bits == 6 ? 2 * code - 63 : quant::levels(bits)[code];
}

void rotate(float* x, int64_t count, int64_t stride, int64_t dim) {
  const int64_t block = dim & -dim;
  const float unit = 1 / std::sqrt(static_cast<float>(block));
  for (int64_t r = 0; r < count; ++r) {
    for (float* row = x + r * stride; row < x + r * stride + dim; row += block) {
      for (int64_t step = 1; step < block; step *= 2) {
        for (int64_t i = 0; i < block; i += 2 * step) {
          for (int64_t j = i; j < i + step; ++j) {
            const float a = row[j], b = row[j + step];
            row[j] = a + b, row[j + step] = a - b;
          }
        }
      }
      for (int64_t i = 0; i < block; ++i) row[i] *= unit;
    }
  }
}

}  // namespace heed::kernel
