// DLPack in and out: what comes in is the same memory, what goes out is released once, and what a
// view cannot say is refused. With NumPy and PyTorch: tests/interop/dlpack_test.py.
#include "heed/dlpack.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

namespace heed {
namespace {

// A tensor of another library.
struct Foreign {
  std::vector<float> data = std::vector<float>(24, 1);
  std::vector<int64_t> sizes = {2, 3, 4}, strides = {12, 4, 1};
  heed_dl_managed managed{};

  Foreign() {
    managed.tensor.data = data.data();
    managed.tensor.device = {1, 0};
    managed.tensor.rank = 3;
    managed.tensor.dtype = {2, 32, 1};
    managed.tensor.sizes = sizes.data();
    managed.tensor.strides = strides.data();
  }
};

// What is said of the tensor; "" if it is taken.
std::string refusal(const heed_dl_managed& managed, heed_status expected) {
  char message[200] = "";
  heed_view view{};
  view.rank = -7;
  EXPECT_EQ(heed_view_from_dlpack(&managed, &view, message, sizeof message), expected);
  EXPECT_EQ(view.rank == -7, expected != HEED_OK) << "written only on success";
  EXPECT_EQ(heed_view_from_dlpack(&managed, &view, nullptr, 0), expected);
  return message;
}

TEST(Dlpack, HasTheLayoutOfDlpack) {
  EXPECT_EQ(offsetof(heed_dl_tensor, device), 8u);
  EXPECT_EQ(offsetof(heed_dl_tensor, rank), 16u);
  EXPECT_EQ(offsetof(heed_dl_tensor, dtype), 20u);
  EXPECT_EQ(offsetof(heed_dl_tensor, sizes), 24u);
  EXPECT_EQ(offsetof(heed_dl_tensor, strides), 32u);
  EXPECT_EQ(offsetof(heed_dl_tensor, byte_offset), 40u);
  EXPECT_EQ(offsetof(heed_dl_managed, context), 48u);
  EXPECT_EQ(offsetof(heed_dl_managed, deleter), 56u);
}

TEST(Dlpack, InIsTheSameMemory) {
  Foreign foreign;
  heed_view view{};
  ASSERT_EQ(heed_view_from_dlpack(&foreign.managed, &view, nullptr, 0), HEED_OK);
  EXPECT_EQ(view.data, foreign.data.data());
  EXPECT_EQ(view.dtype, HEED_FLOAT32);
  EXPECT_EQ(view.device, HEED_CPU);
  ASSERT_EQ(view.rank, 3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(view.sizes[i], foreign.sizes[i]);
    EXPECT_EQ(view.strides[i], foreign.strides[i]);
  }
  // Without strides: row by row; an offset in bytes.
  foreign.managed.tensor.strides = nullptr;
  foreign.managed.tensor.byte_offset = 8;
  ASSERT_EQ(heed_view_from_dlpack(&foreign.managed, &view, nullptr, 0), HEED_OK);
  EXPECT_EQ(view.data, foreign.data.data() + 2);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(view.strides[i], foreign.strides[i]);
  // Numbers alone, and empty tensors without data.
  foreign.managed.tensor.rank = 0;
  EXPECT_EQ(refusal(foreign.managed, HEED_OK), "");
  foreign.managed.tensor.rank = 3;
  foreign.managed.tensor.data = nullptr;
  foreign.sizes[1] = 0;
  EXPECT_EQ(refusal(foreign.managed, HEED_OK), "");
}

TEST(Dlpack, RefusesWhatAViewCannotSay) {
  const auto expect = [](heed_status status, const char* text, auto change) {
    Foreign foreign;
    change(foreign, foreign.managed.tensor);
    const std::string said = refusal(foreign.managed, status);
    EXPECT_NE(said.find(text), std::string::npos) << said;
  };
  expect(HEED_INVALID_ARGUMENT, "rank 6", [](auto&, auto& t) { t.rank = 6; });
  expect(HEED_INVALID_ARGUMENT, "rank -1", [](auto&, auto& t) { t.rank = -1; });
  expect(HEED_INVALID_ARGUMENT, "size is -2", [](auto& f, auto&) { f.sizes[0] = -2; });
  expect(HEED_INVALID_ARGUMENT, "no data", [](auto&, auto& t) { t.data = nullptr; });
  expect(HEED_INVALID_ARGUMENT, "2^63", [](auto& f, auto&) { f.sizes = {INT64_MAX, 3, 4}; });
  expect(HEED_UNSUPPORTED, "lanes", [](auto&, auto& t) { t.dtype.lanes = 4; });
  expect(HEED_UNSUPPORTED, "dtype", [](auto&, auto& t) { t.dtype = {5, 64, 1}; });
  expect(HEED_UNSUPPORTED, "dtype", [](auto&, auto& t) { t.dtype = {2, 8, 1}; });
  expect(HEED_UNSUPPORTED, "device type 10", [](auto&, auto& t) { t.device.type = 10; });
  expect(HEED_UNSUPPORTED, "CUDA device 1", [](auto&, auto& t) { t.device = {2, 1}; });
  char message[8] = "";
  EXPECT_EQ(heed_view_from_dlpack(nullptr, nullptr, message, sizeof message),
            HEED_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(message), "dlpack:");
}

TEST(Dlpack, OutIsReleasedOnceAndComesBackTheSame) {
  std::vector<float> data(24);
  for (int32_t dtype = HEED_FLOAT32; dtype <= HEED_UINT8; ++dtype) {
    for (const int32_t device : {HEED_CPU, HEED_CUDA}) {
      const heed_view view{data.data(), dtype, device, 3, {2, 3, 4}, {12, 1, 3}};
      int released = 0;
      heed_dl_managed* out = nullptr;
      ASSERT_EQ(
          heed_view_to_dlpack(
              &view, [](void* owner) { ++*static_cast<int*>(owner); }, &released, &out, nullptr, 0),
          HEED_OK);
      heed_view again{};
      ASSERT_EQ(heed_view_from_dlpack(out, &again, nullptr, 0), HEED_OK);
      EXPECT_EQ(again.data, view.data);
      EXPECT_EQ(again.dtype, dtype);
      EXPECT_EQ(again.device, device);
      for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(again.sizes[i], view.sizes[i]);
        EXPECT_EQ(again.strides[i], view.strides[i]);
      }
      EXPECT_EQ(released, 0);
      out->deleter(out);
      EXPECT_EQ(released, 1);
    }
  }
}

TEST(Dlpack, OutOfNoView) {
  float data = 0;
  const auto expect = [&](heed_view view, const char* text) {
    heed_dl_managed* out = nullptr;
    char message[200] = "";
    EXPECT_EQ(heed_view_to_dlpack(&view, nullptr, nullptr, &out, message, sizeof message),
              HEED_INVALID_ARGUMENT);
    EXPECT_EQ(out, nullptr);
    EXPECT_NE(std::string(message).find(text), std::string::npos) << message;
  };
  expect({&data, 99, HEED_CPU, 1, {1}, {1}}, "dtype 99");
  expect({&data, HEED_FLOAT32, 9, 1, {1}, {1}}, "device 9");
  expect({&data, HEED_FLOAT32, HEED_CPU, 6, {1}, {1}}, "rank 6");
}

}  // namespace
}  // namespace heed
