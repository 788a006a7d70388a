// Sizes of tensors: products that overflow, blocks, empty tensors; look-up by name.
#include "io/tensor_file.h"

#include <gtest/gtest.h>

#include "io_test_helper.h"

namespace heed {
namespace {

constexpr int64_t kHuge = int64_t{1} << 62;

TEST(TensorFile, CountsWithoutOverflow) {
  EXPECT_EQ(count_elements({}), 1);
  EXPECT_EQ(count_elements({3, 4}), 12);
  EXPECT_EQ(count_elements({3, 0}), 0);
  EXPECT_EQ(count_elements({kHuge}), kHuge);
  EXPECT_EQ(count_elements({kHuge, 2}), std::nullopt);
  EXPECT_EQ(count_elements({kHuge, 0, 2}), std::nullopt);
  EXPECT_EQ(count_elements({-1}), std::nullopt);
  EXPECT_EQ(count_elements({0, -1}), std::nullopt);
  EXPECT_EQ(count_bytes({3, 4}, DType::F32), 48);
  EXPECT_EQ(count_bytes({}, DType::F64), 8);
  EXPECT_EQ(count_bytes({0, 5}, DType::F64), 0);
  EXPECT_EQ(count_bytes({2, 64}, DType::Q4_0), 2 * 2 * 18);
  EXPECT_EQ(count_bytes({64, 2}, DType::Q4_0), std::nullopt);
  EXPECT_EQ(count_bytes({}, DType::Q4_0), std::nullopt);
  EXPECT_EQ(count_bytes({kHuge}, DType::F32), std::nullopt);
  EXPECT_EQ(count_bytes({0, kHuge}, DType::F32), std::nullopt);
  EXPECT_EQ(count_bytes({kHuge, 0}, DType::Q6_K), 0);
}

TEST(TensorFile, Rows) {
  TensorInfo tensor{"t", DType::Q4_K, {3, 2, 512}, nullptr, 0};
  EXPECT_EQ(tensor.rows(), 6);
  EXPECT_EQ(tensor.row_size(), 512);
  EXPECT_EQ(tensor.row_bytes(), 288);
  tensor = {"t", DType::F16, {}, nullptr, 0};
  EXPECT_EQ(tensor.rows(), 1);
  EXPECT_EQ(tensor.row_bytes(), 2);
  tensor.shape = {4, 0};
  EXPECT_EQ(tensor.rows(), 0);
  tensor.shape = {0, 4};
  EXPECT_EQ(tensor.rows(), 0);
  EXPECT_EQ(tensor.row_bytes(), 8);
}

TEST(TensorFile, FindsByName) {
  TensorFile file;
  file.path = "x";
  EXPECT_TRUE(file.add({"a", DType::F32, {1}, nullptr, 4}));
  EXPECT_TRUE(file.add({"b", DType::U8, {1}, nullptr, 1}));
  EXPECT_FALSE(file.add({"a", DType::U8, {1}, nullptr, 1}));
  EXPECT_EQ(file.tensors.size(), 2u);
  EXPECT_EQ(file.get("a").dtype, DType::F32);
  const TensorFile copy = file;
  EXPECT_EQ(copy.get("b").dtype, DType::U8);
  EXPECT_EQ(copy.find("c"), nullptr);
  testing::expect_error([&] { file.get("c"); }, {"x: tensor 'c' is missing"});
}

}  // namespace
}  // namespace heed
