// De-quantisation against the values that the Python package `gguf` computes, bit for bit.
#include "io/dequant.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "io/gguf.h"
#include "io/safetensors.h"
#include "io_test_helper.h"

namespace heed {
namespace {

using testing::expect_error;
using testing::fixture;

TEST(Dequant, EveryTypeEqualsThePythonPackageBitForBit) {
  const GgufFile quantised = open_gguf(fixture("quantised.gguf"));
  const TensorFile expected = open_safetensors(fixture("dequantised.safetensors"));
  ASSERT_EQ(quantised.tensors.size(), 11u);
  for (const TensorInfo& tensor : quantised.tensors) {
    ASSERT_TRUE(can_dequantize(tensor.dtype)) << tensor.name;
    ASSERT_EQ(tensor.shape, (std::vector<int64_t>{3, 512})) << tensor.name;
    EXPECT_EQ(tensor.name, std::string("weight.") + dtype_name(tensor.dtype));
    const TensorInfo& want = expected.get(tensor.name);
    std::vector<float> out(3 * 512, NAN);
    dequantize_rows(tensor, 0, 3, out.data());
    ASSERT_EQ(want.bytes, out.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(out.data(), want.data, want.bytes), 0) << tensor.name;
    // Any range of rows, and bytes that are not aligned, give the same.
    std::vector<float> row(512);
    dequantize_rows(tensor, 1, 2, row.data());
    EXPECT_EQ(std::memcmp(row.data(), out.data() + 512, 512 * sizeof(float)), 0) << tensor.name;
    std::vector<std::byte> shifted(tensor.bytes + 1);
    std::memcpy(shifted.data() + 1, tensor.data, tensor.bytes);
    std::vector<float> again(out.size());
    dequantize(tensor.dtype, shifted.data() + 1, 3 * 512, again.data());
    EXPECT_EQ(std::memcmp(again.data(), out.data(), want.bytes), 0) << tensor.name;
  }
}

TEST(Dequant, EveryHalf) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float got = float_from_half(static_cast<uint16_t>(bits));
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const int fraction = static_cast<int>(bits & 1023);
    const float sign = bits >> 15 != 0 ? -1.0f : 1.0f;
    if (exponent == 31 && fraction != 0) {
      EXPECT_TRUE(std::isnan(got)) << bits;
      continue;
    }
    const float want = exponent == 31 ? std::numeric_limits<float>::infinity()
                       : exponent == 0
                           ? std::ldexp(static_cast<float>(fraction), -24)
                           : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    EXPECT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(sign * want)) << bits;
  }
}

TEST(Dequant, Bfloat16) {
  EXPECT_EQ(float_from_bfloat16(0x3F80), 1.0f);
  EXPECT_EQ(float_from_bfloat16(0xC040), -3.0f);
  EXPECT_EQ(std::bit_cast<uint32_t>(float_from_bfloat16(0x0001)), 0x00010000u);
  EXPECT_TRUE(std::isnan(float_from_bfloat16(0x7FC0)));
}

TEST(Dequant, RefusesWhatItCannotRead) {
  TensorInfo tensor{"blk.0.x", DType::Q2_K, {2, 256}, nullptr, 168};
  float out[1];
  expect_error([&] { dequantize_rows(tensor, 0, 2, out); }, {"blk.0.x", "Q2_K", "convert"});
  tensor.dtype = DType::F32;
  expect_error([&] { dequantize_rows(tensor, 0, 3, out); }, {"blk.0.x", "[2, 256]"});
  expect_error([&] { dequantize_rows(tensor, -1, 1, out); }, {"blk.0.x"});
  expect_error([&] { dequantize(DType::Q4_0, nullptr, 33, out); }, {"33", "32"});
  dequantize(DType::Q4_0, nullptr, 0, nullptr);
}

}  // namespace
}  // namespace heed
