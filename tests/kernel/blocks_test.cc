// Products with interleaved blocks and with rows as files have them: on every instruction set
// against sums in float64, NaN, threads.
#include "kernel/linear/blocks.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernel/parallel.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel::blocks_test {
namespace {

constexpr BlockType kTypes[] = {BlockType::kQ8_0,    BlockType::kQ4_0,    BlockType::kQ4_1,
                                BlockType::kFloat32, BlockType::kFloat16, BlockType::kBfloat16,
                                BlockType::kOther};

std::vector<float> normal_numbers(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = normal(random);
  return out;
}

// Bytes that are halved: for kOther.
void unpack_bytes(int32_t format, const std::byte* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<float>(static_cast<int8_t>(from[i])) / static_cast<float>(format);
  }
}

// A matrix of random blocks with the memory that it lies in.
struct Owned {
  BlockMatrix matrix;
  std::vector<std::byte> bytes;
  std::vector<float> values;  // by unpack_rows

  Owned(BlockType type, int64_t out, int64_t in, unsigned seed) {
    std::mt19937 random(seed);
    matrix.type = type;
    matrix.out = out;
    matrix.in = in;
    const int64_t sizes[] = {0, 0, 0, 4, 2, 2, 1};
    matrix.row_bytes =
        is_packed(type) ? stored_row_bytes(type, in) : in * sizes[static_cast<int32_t>(type)];
    matrix.unpack = unpack_bytes;
    matrix.format = 16;
    std::vector<std::byte> rows(static_cast<size_t>(out * matrix.row_bytes));
    for (auto& byte : rows) byte = static_cast<std::byte>(random());
    if (is_packed(type)) {
      const int64_t block = type == BlockType::kQ8_0 ? 34 : type == BlockType::kQ4_0 ? 18 : 20;
      for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(block)) {
        put_half(&rows[at], static_cast<float>(random() % 1000) * 1e-4f);
        if (type == BlockType::kQ4_1) put_half(&rows[at + 2], -0.5f);
      }
      bytes.resize(static_cast<size_t>(packed_bytes(type, out, in)));
      pack_rows(type, rows.data(), nullptr, out, in, 0, (out + 15) / 16, bytes.data());
    } else {
      if (type != BlockType::kOther) put_numbers(rows, normal_numbers(out * in, seed));
      bytes = rows;
    }
    matrix.data = bytes.data();
    values.resize(static_cast<size_t>(out * in));
    unpack_rows(matrix, 0, out, values.data());
  }

 private:
  static void put_half(std::byte* at, float value) {
    const uint16_t bits = float_to_float16(value);
    std::memcpy(at, &bits, sizeof bits);
  }
  void put_numbers(std::vector<std::byte>& rows, const std::vector<float>& numbers) const {
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (matrix.type == BlockType::kFloat32) {
        std::memcpy(&rows[4 * i], &numbers[i], 4);
      } else {
        const uint16_t bits = matrix.type == BlockType::kFloat16 ? float_to_float16(numbers[i])
                                                                 : float_to_bfloat16(numbers[i]);
        std::memcpy(&rows[2 * i], &bits, 2);
      }
    }
  }
};

// What a call gives: the products of x with `w`, and with a gate, bias and residual where asked.
struct Problem {
  const Owned *w, *gate;
  const std::vector<float>*x, *bias, *add;
  int64_t rows;
  bool fine = true;

  std::vector<float> run(const heed_parallel* parallel, bool reference = false) const {
    const BlockMatrix& m = w->matrix;
    std::vector<float> y(static_cast<size_t>(rows * m.out), NAN);
    BlockProduct product;
    product.w = &m;
    product.bias = bias ? bias->data() : nullptr;
    if (gate) product.gate = &gate->matrix;
    if (gate && bias) product.gate_bias = bias->data();
    product.add = add ? add->data() : nullptr;
    product.add_stride = product.y_stride = m.out;
    product.y = y.data();
    const BlockCall call{x->data(), rows, m.in, &product, 1, fine};
    std::vector<std::byte> memory(static_cast<size_t>(linear_blocks_scratch(call, parallel) + 64));
    auto* scratch =
        reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
    if (reference) {
      linear_blocks_reference(call, scratch);
    } else {
      linear_blocks(call, scratch, parallel);
    }
    return y;
  }
  double exact(const Owned& matrix, int64_t m, int64_t n) const {
    double sum = bias ? (*bias)[static_cast<size_t>(n)] : 0;
    const int64_t in = w->matrix.in;
    for (int64_t k = 0; k < in; ++k) {
      sum += static_cast<double>((*x)[static_cast<size_t>(m * in + k)]) *
             matrix.values[static_cast<size_t>(n * in + k)];
    }
    return sum;
  }
  double exact(int64_t m, int64_t n) const {
    double y = exact(*w, m, n);
    if (gate) {
      const double g = exact(*gate, m, n);
      y *= g / (1 + std::exp(-g));
    }
    return add ? y + (*add)[static_cast<size_t>(m * w->matrix.out + n)] : y;
  }
  // ||y - exact|| / ||exact||
  double error_of(const std::vector<float>& y) const {
    double error = 0, size = 0;
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t n = 0; n < w->matrix.out; ++n) {
        const double right = exact(m, n);
        error += std::pow(y[static_cast<size_t>(m * w->matrix.out + n)] - right, 2);
        size += right * right;
      }
    }
    return std::sqrt(error / size);
  }
};

TEST(LinearBlocks, EveryInstructionSetEqualsTheSum) {
  ThreadPool pool(3);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    for (const BlockType type : kTypes) {
      for (const int64_t in : {32, 96, 544}) {
        for (const int64_t out : {1, 15, 16, 33, 70}) {
          const Owned w(type, out, in, 5), gate(type, out, in, 6);
          const auto x = normal_numbers(70 * in, 1), bias = normal_numbers(out, 3),
                     add = normal_numbers(70 * out, 4);
          for (const int64_t rows : {1, 2, 5, 8, 70}) {
            for (const bool more : {false, true}) {
              const bool fine = rows != 5;
              const Problem p{&w,
                              more ? &gate : nullptr,
                              &x,
                              more ? &bias : nullptr,
                              more ? &add : nullptr,
                              rows,
                              fine};
              const auto y = p.run(rows % 5 == 0 ? pool.parallel() : nullptr);
              // Rounded to 8 bits: a step of max / 127 in each of 32, whose error is a uniform
              // sqrt(1/12) of it, against values of a third of the maximum: 0.006, and as much
              // again from the gate; to 16 bits 255 times less, beside sums in float32. Single sums
              // may be small beside their terms; those of few rows are held against the reference
              // alone.
              const double bound = out * rows < 64 && is_packed(type) ? 1
                                   : is_packed(type) && !fine         ? 0.015
                                                                      : 1e-4;
              ASSERT_LE(p.error_of(y), bound)
                  << hwy::TargetName(target) << " type " << static_cast<int>(type) << ", " << rows
                  << " rows, " << out << " x " << in << (more ? ", gated" : "");
              const auto plain = p.run(nullptr, true);
              for (size_t i = 0; i < y.size(); ++i) {  // float32 sums of terms that cancel
                ASSERT_NEAR(y[i], plain[i], 2e-3 * (1 + std::abs(plain[i]))) << i;
              }
            }
          }
        }
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(LinearBlocks, NeitherThreadsNorOtherRowsChangeARow) {
  ThreadPool two(2), five(5);
  for (const BlockType type : kTypes) {
    const Owned w(type, 600, 64, 7);
    const auto x = normal_numbers(100 * 64, 8);
    Problem p{&w, &w, &x, nullptr, nullptr, 100};
    const auto all = p.run(nullptr);
    EXPECT_EQ(all, p.run(two.parallel()));
    EXPECT_EQ(all, p.run(five.parallel()));
    p.rows = 3;
    const auto few = p.run(five.parallel());
    EXPECT_TRUE(std::equal(few.begin(), few.end(), all.begin()));
  }
}

TEST(LinearBlocks, WhatIsNotFiniteStaysInItsRow) {
  for (const BlockType type : kTypes) {
    const Owned w(type, 40, 64, 9);
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      auto x = normal_numbers(5 * 64, 10);
      x[2 * 64 + 37] = bad;
      const auto y = Problem{&w, nullptr, &x, nullptr, nullptr, 5}.run(nullptr);
      for (int64_t i = 0; i < 5 * 40; ++i) {
        EXPECT_EQ(std::isfinite(y[static_cast<size_t>(i)]), i / 40 != 2) << i;
      }
    }
  }
}

TEST(LinearBlocks, TinyHugeAndZeroActivations) {
  const Owned w(BlockType::kQ8_0, 16, 32, 11);
  std::vector<float> x(3 * 32, 0.0f);
  for (int k = 0; k < 32; ++k) {
    x[static_cast<size_t>(32 + k)] = 1e-38f;
    x[static_cast<size_t>(64 + k)] = 3e33f;
  }
  const Problem p{&w, nullptr, &x, nullptr, nullptr, 3};
  const auto y = p.run(nullptr);
  for (int64_t n = 0; n < 16; ++n) {
    EXPECT_EQ(y[static_cast<size_t>(n)], 0);
    EXPECT_NEAR(y[static_cast<size_t>(16 + n)], 0, 1e-30);
    EXPECT_NEAR(y[static_cast<size_t>(32 + n)] / p.exact(2, n), 1, 1e-3);
  }
}

TEST(PackRows, TakesRowsInTheOrderAsked) {
  const int64_t order[] = {2, 0, 1};
  const BlockType type = BlockType::kQ4_1;
  std::vector<std::byte> rows(3 * 20);
  for (int r = 0; r < 3; ++r) rows[static_cast<size_t>(20 * r + 4)] = static_cast<std::byte>(r + 1);
  for (int r = 0; r < 3; ++r) rows[static_cast<size_t>(20 * r + 1)] = std::byte{0x3C};  // 1.0
  std::vector<std::byte> packed(static_cast<size_t>(packed_bytes(type, 3, 32)));
  pack_rows(type, rows.data(), order, 3, 32, 0, 1, packed.data());
  const BlockMatrix w{type, 3, 32, packed.data()};
  std::vector<float> values(3 * 32);
  unpack_rows(w, 0, 3, values.data());
  EXPECT_EQ(values[0], 3);
  EXPECT_EQ(values[32], 1);
  EXPECT_EQ(values[64], 2);
}

}  // namespace
}  // namespace heed::kernel::blocks_test
