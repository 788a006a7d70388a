// Rounding to ggml's types and GGUF files that are written, read back.
#include "io/gguf_writer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "io/dequant.h"
#include "io/error.h"
#include "io/quantise.h"
#include "temp_folder.h"

namespace heed {
namespace gguf_writer_test {

TEST(Quantise, HalvesAreTheNearest) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = float_from_half(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(float_from_half(half_from_float(value))));
      continue;
    }
    ASSERT_EQ(half_from_float(value), bits);
    const float next = float_from_half(static_cast<uint16_t>(bits + 1));
    if ((bits & 0x7FFF) >= 0x7BFF || !std::isfinite(next)) continue;
    const float middle = (value + next) / 2;  // exact in float32; ties go to the even one
    ASSERT_EQ(half_from_float(middle), bits + (bits & 1)) << bits;
    ASSERT_EQ(half_from_float(std::nextafter(middle, value)), bits) << bits;
  }
  EXPECT_EQ(half_from_float(65519.0f), 0x7BFF);
  EXPECT_EQ(half_from_float(65520.0f), 0x7C00);
  EXPECT_EQ(half_from_float(-1e30f), 0xFC00);
  EXPECT_EQ(bfloat16_from_float(1.00390625f), 0x3F80);  // a tie
  EXPECT_EQ(bfloat16_from_float(1.01171875f), 0x3F82);
}

TEST(Quantise, BlocksAreWithinHalfAStep) {
  std::vector<float> x(64), y(64);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = std::sin(static_cast<float>(i * i)) * (i < 32 ? 1.0f : 20.0f);
  }
  const struct {
    DType dtype;
    float step;  // against the largest number
  } types[] = {{DType::Q8_0, 1.0f / 127}, {DType::Q4_0, 1.0f / 4}, {DType::Q4_1, 2.0f / 15}};
  for (const auto& [dtype, step] : types) {
    std::vector<std::byte> blocks(2 * static_cast<size_t>(dtype_info(dtype).bytes));
    quantise(dtype, x.data(), 64, blocks.data());
    dequantize(dtype, blocks.data(), 64, y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(y[i], x[i], (i < 32 ? 1.0f : 20.0f) * step * 0.51f) << dtype_name(dtype);
    }
  }
  std::byte out[34];
  EXPECT_THROW(quantise(DType::Q8_0, x.data(), 33, out), Error);
  EXPECT_THROW(quantise(DType::Q6_K, x.data(), 0, out), Error);
}

TEST(GgufWriter, WhatIsWrittenIsReadBack) {
  test::TempFolder folder;
  const std::string path = folder / "a.gguf";
  GgufMetadata m;
  m.string("general.architecture", "x");
  m.integer("count", 7);
  m.integer("count", 8);  // in its place
  m.real("real", 0.5f);
  m.boolean("yes", true);
  m.strings("words", {"a", "", "long one"});
  m.integers("ids", {-1, 2});
  m.reals("scores", {1.5f});
  GgufWriter writer(
      path, m, {{"v", DType::F32, {3}}, {"none", DType::F32, {0}}, {"w", DType::Q8_0, {2, 32}}});
  const float v[] = {1, 2, 3};
  std::byte w[68];
  for (size_t i = 0; i < sizeof w; ++i) w[i] = static_cast<std::byte>(i);
  EXPECT_THROW(writer.write("w", w, 34), Error);  // not its turn
  writer.write("v", v, 8);
  EXPECT_THROW(writer.write("v", v, 8), Error);  // more than it holds
  writer.write("v", v + 2, 4);
  writer.write("w", w, 34);
  EXPECT_THROW(writer.finish(), Error);
  EXPECT_FALSE(std::filesystem::exists(path));
  writer.write("w", w + 34, 34);
  writer.finish();
  const GgufFile file = open_gguf(path);
  EXPECT_EQ(file.integer("count"), 8);
  EXPECT_EQ(file.real("real"), 0.5);
  EXPECT_TRUE(file.boolean("yes"));
  EXPECT_EQ(file.strings("words")[2], "long one");
  EXPECT_EQ(file.integers("ids"), (std::vector<int64_t>{-1, 2}));
  EXPECT_EQ(file.reals("scores"), std::vector<float>{1.5f});
  EXPECT_EQ(std::memcmp(file.get("v").data, v, sizeof v), 0);
  EXPECT_EQ(file.get("w").shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(std::memcmp(file.get("w").data, w, sizeof w), 0);
  GgufMetadata copied;
  for (const auto& [key, value] : file.values) copied.copy(key, value);
  GgufWriter(folder / "b.gguf", copied, {}).finish();
  EXPECT_EQ(open_gguf(folder / "b.gguf").strings("words"), file.strings("words"));
}

TEST(GgufWriter, RefusesWhatTheFormatDoesNotHave) {
  test::TempFolder folder;
  const std::string path = folder / "a.gguf";
  EXPECT_THROW(GgufWriter(path, {}, {{"w", DType::Q8_0, {2, 33}}}), Error);
  EXPECT_THROW(GgufWriter(path, {}, {{"w", DType::F32, {1}}, {"w", DType::F32, {1}}}), Error);
  EXPECT_THROW(GgufWriter(path, {}, {{"w", DType::F8_E4M3, {1}}}), Error);
  EXPECT_EQ(folder.files(), 0u);
}

}  // namespace gguf_writer_test
}  // namespace heed
