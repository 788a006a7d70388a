// Neighborhood attention's must-hold list, and gna's: windows as large as the axis, exact numbers
// of keys, stride 1, blocks, groups that share a window.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace {

using testing::relative_error;

NamedTensors inputs(int64_t tokens, uint64_t seed) {
  Try one;
  one.settings = {{"window", "2"}};
  one.sizes = {{"B", 2}, {"H", 4}, {"Hk", 2}, {"D", 16}, {"V", 12}, {"T", tokens}};
  NamedTensors in = testing::make_inputs(find_mechanism("fna"), one, tokens, seed);
  in.erase("extra_k"), in.erase("extra_v");
  return in;
}

at::Tensor out(const char* id, const NamedTensors& in, const char* form,
               const SettingList& settings = {}) {
  return testing::run(find_mechanism(id), in, form, settings).at("out");
}

// Weights [T,T] of a call, seen through one-hot values and keys of 0.
at::Tensor weights(const char* id, const char* form, int64_t tokens, const SettingList& settings) {
  const NamedTensors in = {{"q", at::zeros({1, tokens, 1, 4})},
                           {"k", at::zeros({1, tokens, 1, 4})},
                           {"v", at::eye(tokens).view({1, tokens, 1, tokens})}};
  return out(id, in, form, settings).view({tokens, tokens});
}

TEST(Fna, WindowsAsLargeAsTheAxesAreFullAttention) {
  const NamedTensors in = inputs(48, 1);
  const at::Tensor full = out("softmax", in, "parallel");
  const at::Tensor causal = out("softmax", in, "parallel", {{"causal", "true"}});
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(out("fna", in, form, {{"grid", "6x8"}, {"window", "6x8"}}), full),
              2e-6);
    EXPECT_LE(relative_error(out("fna", in, form, {{"window", "48"}, {"causal", "true"}}), causal),
              2e-6);
  }
}

TEST(Fna, EveryQuerySeesAsManyKeysAndItself) {
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor w = weights("fna", form, 63, {{"grid", "7x9"}, {"window", "3x4"}});
    EXPECT_TRUE(w.gt(0).sum(1).eq(12).all().item<bool>()) << form;
    EXPECT_TRUE(w.diagonal().gt(0).all().item<bool>()) << form;
    const at::Tensor c =
        weights("fna", form, 63, {{"grid", "7x9"}, {"window", "3x4"}, {"causal", "1x1"}});
    EXPECT_EQ(c[0].gt(0).sum().item<int64_t>(), 1) << form;
    EXPECT_EQ(c[62].gt(0).sum().item<int64_t>(), 12) << form;
  }
}

TEST(Fna, ExtraKeysAreInTheSameSoftmax) {
  NamedTensors in = inputs(30, 3);
  const NamedTensors more = inputs(5, 4);
  in["extra_k"] = more.at("k"), in["extra_v"] = more.at("v");
  for (const char* window : {"2", "7"}) {
    const SettingList settings = {{"window", window}};
    EXPECT_LE(
        relative_error(out("fna", in, "parallel", settings), out("fna", in, "naive", settings)),
        2e-6);
  }
}

TEST(Fna, OutsideItsBoundsIsRefused) {
  const NamedTensors in = inputs(30, 5);
  EXPECT_THROW(out("fna", in, "naive", {{"window", "1"}}), std::exception);
  EXPECT_THROW(out("fna", in, "parallel", {{"window", "11"}, {"dilation", "3"}}), std::exception);
  EXPECT_THROW(out("fna", in, "parallel", {{"window", "2"}, {"grid", "4x7"}}), std::exception);
}

}  // namespace
}  // namespace heed::mixer
