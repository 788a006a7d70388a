// Products of a few rows, on every instruction set, against sums in float64.
#include "kernel/linear/linear.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernel/parallel.h"

namespace heed::kernel {
namespace {

std::vector<float> numbers(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = normal(random);
  return out;
}

// ||y - (x w^T + bias)|| / ||x w^T + bias||
double error_of(const std::vector<float>& y, const std::vector<float>& x,
                const std::vector<float>& w, const float* bias, int64_t rows, int64_t out,
                int64_t in) {
  double error = 0, size = 0;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < out; ++n) {
      double sum = bias ? bias[n] : 0;
      for (int64_t k = 0; k < in; ++k) {
        sum += static_cast<double>(x[m * in + k]) * static_cast<double>(w[n * in + k]);
      }
      error += std::pow(y[m * out + n] - sum, 2);
      size += sum * sum;
    }
  }
  return std::sqrt(error / size);
}

TEST(LinearFewRows, EveryInstructionSetEqualsTheSum) {
  ThreadPool pool(3);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    for (const int64_t in : {1, 7, 16, 33, 100, 513}) {
      for (const int64_t out : {1, 2, 31, 33, 70}) {
        const auto x = numbers(kFewRows * in, 1), w = numbers(out * in, 2), bias = numbers(out, 3);
        std::vector<float> alone;
        for (int64_t rows = 1; rows <= kFewRows; ++rows) {
          for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
            std::vector<float> y(static_cast<size_t>(rows * out), NAN);
            linear_few_rows(x.data(), rows, w.data(), b, out, in, y.data(),
                            rows % 3 == 0 ? pool.parallel() : nullptr);
            ASSERT_LE(error_of(y, x, w, b, rows, out, in), 2e-6)
                << rows << " rows, " << out << " x " << in;
            if (b) continue;
            // A row's sums do not depend on how many rows there are.
            if (rows == 1) alone = y;
            ASSERT_TRUE(std::equal(alone.begin(), alone.end(), y.begin())) << rows;
          }
        }
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace heed::kernel
