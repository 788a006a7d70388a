// Rows in few bits: the layout, the error of each number of bits, rows of odd widths, hostile rows,
// the same result for every instruction set; and the rotation.
#include "kernel/quant/quant.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "hwy/targets.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel {
namespace quant_test {

std::vector<float> gaussian(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

struct Packed {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
};

Packed pack(int bits, const std::vector<float>& x, int64_t dim, const float* centre = nullptr) {
  const int64_t rows = static_cast<int64_t>(x.size()) / dim;
  Packed p{std::vector<uint8_t>(rows * row_bytes(bits, dim)), std::vector<uint16_t>(rows)};
  encode_rows(bits, x.data(), dim, rows, dim, centre, p.codes.data(), p.scales.data());
  return p;
}

std::vector<float> unpack(int bits, const Packed& p, int64_t dim, const float* centre = nullptr) {
  const int64_t rows = static_cast<int64_t>(p.scales.size());
  std::vector<float> y(rows * dim);
  decode_rows(bits, p.codes.data(), row_bytes(bits, dim), p.scales.data(), rows, dim, centre,
              y.data(), dim);
  return y;
}

double mean_square_error(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, all = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (x[i] - y[i]) * (x[i] - y[i]);
    all += x[i] * x[i];
  }
  return error / all;
}

// Max's table gives 0.1175, 0.0345, 0.0095 and 0.0025 for 2 to 5 bits; a scale a row helps a
// little.
TEST(Quant, ErrorsAreThoseOfTheBestScalarQuantiser) {
  const double most[] = {0.118, 0.0347, 0.0096, 0.00257, 0.0009, 0, 6e-5};
  for (const int bits : kQuantBits) {
    for (const int64_t dim : {64, 80, 96, 128, 256}) {
      const auto x = gaussian(300 * dim, 7);
      EXPECT_LT(mean_square_error(x, unpack(bits, pack(bits, x, dim), dim)), most[bits - 2])
          << bits << " bits, " << dim;
    }
  }
}

TEST(Quant, RowsLieAsTheLayoutSays) {
  for (const int bits : kQuantBits) {
    for (const int64_t dim : {1, 7, 8, 40, 64, 72, 80, 96, 136}) {
      const auto x = gaussian(3 * dim, 8), centre = gaussian(dim, 9);
      const Packed p = pack(bits, x, dim, centre.data());
      const auto y = unpack(bits, p, dim, centre.data());
      for (int64_t r = 0; r < 3; ++r) {
        const uint8_t* row = p.codes.data() + r * row_bytes(bits, dim);
        for (int64_t i = 0; i < dim; ++i) {
          const float expected =
              bfloat16_to_float(p.scales[r]) * static_cast<float>(quant_level(bits, row, dim, i)) +
              centre[i];
          ASSERT_NEAR(y[r * dim + i], expected, 1e-6f * (1 + std::abs(expected)))
              << bits << " bits, " << dim << ", " << i;
        }
      }
    }
  }
}

TEST(Quant, EveryTargetGivesTheSame) {
  const int64_t dim = 80;
  const auto x = gaussian(50 * dim, 10);
  for (const int bits : kQuantBits) {
    const Packed first = pack(bits, x, dim);
    const auto y = unpack(bits, first, dim);
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      const Packed other = pack(bits, x, dim);
      int64_t differ = 0;
      for (size_t i = 0; i < first.codes.size(); ++i) differ += first.codes[i] != other.codes[i];
      // Sums in another order may move a scale, and with it a number that lies between two levels.
      EXPECT_LE(differ, static_cast<int64_t>(first.codes.size()) / 100) << bits;
      const auto z = unpack(bits, first, dim);
      for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(z[i], y[i], 1e-6f) << bits;
    }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
}

TEST(Quant, HostileRows) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const int bits : kQuantBits) {
    std::vector<float> x(5 * 64, 0.0f);
    x[64] = NAN, x[2 * 64 + 3] = -infinity;
    for (int i = 0; i < 64; ++i) x[3 * 64 + i] = 3e38f * (i % 2 ? 1.0f : -1.0f);
    for (int i = 0; i < 64; ++i) x[4 * 64 + i] = 1e-20f * static_cast<float>(i - 32);
    const auto y = unpack(bits, pack(bits, x, 64), 64);
    for (int i = 0; i < 64; ++i) {
      EXPECT_EQ(y[i], 0) << bits;
      EXPECT_TRUE(std::isnan(y[64 + i])) << bits;
      EXPECT_TRUE(std::isnan(y[2 * 64 + i])) << bits;
      EXPECT_TRUE(std::isfinite(y[4 * 64 + i])) << bits;
    }
  }
}

TEST(Quant, RotationKeepsProductsAndUndoesItself) {
  for (const int64_t dim : {1, 7, 48, 64, 80, 256}) {
    const auto a = gaussian(2 * dim, 11);
    auto b = a;
    rotate(b.data(), 2, dim, dim);
    double before = 0, after = 0;
    for (int64_t i = 0; i < dim; ++i) before += a[i] * a[dim + i], after += b[i] * b[dim + i];
    EXPECT_NEAR(before, after, 1e-4 * static_cast<double>(dim));
    rotate(b.data(), 2, dim, dim);
    for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-5);
  }
}

}  // namespace quant_test
}  // namespace heed::kernel
