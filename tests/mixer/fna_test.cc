// Neighborhood attention's must-hold list, and gna's: windows as large as the axis, exact numbers
// of keys, stride 1, blocks, groups that share a window.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace fna_test {

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

TEST(Fna, DilationSplitsIntoGroups) {
  const NamedTensors in = inputs(36, 6);
  for (const char* causal : {"false", "true"}) {
    for (const char* form : {"naive", "parallel"}) {
      const at::Tensor y =
          out("fna", in, form, {{"window", "5"}, {"dilation", "3"}, {"causal", causal}});
      for (int64_t g = 0; g < 3; ++g) {
        NamedTensors group;
        for (const auto& [name, t] : in) group[name] = t.slice(1, g, 36, 3);
        EXPECT_LE(relative_error(y.slice(1, g, 36, 3),
                                 out("fna", group, form, {{"window", "5"}, {"causal", causal}})),
                  2e-6)
            << form << g;
      }
    }
  }
}

TEST(Fna, WindowsOnlyMoveOn) {
  for (const char* causal : {"false", "true"}) {
    const at::Tensor seen =
        weights("fna", "parallel", 29, {{"window", "6"}, {"causal", causal}}).gt(0).to(at::kLong);
    const at::Tensor first = seen.argmax(1), end = first.add(seen.sum(1));
    EXPECT_TRUE(first.slice(0, 1).ge(first.slice(0, 0, 28)).all().item<bool>()) << causal;
    EXPECT_TRUE(end.slice(0, 1).ge(end.slice(0, 0, 28)).all().item<bool>()) << causal;
  }
}

// Where the first axis is causal, slices of the grid come one after another.
TEST(Fna, DecodesSliceBySlice) {
  const NamedTensors in = inputs(60, 8);
  const SettingList settings = {
      {"grid", "5x3x4"}, {"window", "2x2x3"}, {"dilation", "2x1x1"}, {"causal", "1x0x1"}};
  EXPECT_LE(
      relative_error(out("fna", in, "recurrent", settings), out("fna", in, "naive", settings)),
      2e-6);
  const SettingList strided = {
      {"grid", "5x12"}, {"window", "3x4"}, {"stride", "2x4"}, {"causal", "1x0"}};
  EXPECT_LE(relative_error(out("gna", in, "recurrent", strided), out("gna", in, "naive", strided)),
            2e-6);
  EXPECT_THROW(
      out("fna", in, "recurrent", {{"grid", "5x12"}, {"window", "3x4"}, {"causal", "0x1"}}),
      UsageError);
}

// As causal self attention the layer is a sliding window; noncausal it takes a grid of any rank.
TEST(Fna, TheLayerSlidesAndTakesGrids) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4, config.kv_heads = 2;
  config.options = {{"window", 5}};
  at::manual_seed(7);
  const auto layer = make_layer("fna", config), plain = make_layer("softmax", config);
  for (auto& [name, t] : plain->parameters()) t.copy_(layer->parameters().at(name));
  const at::Tensor x = at::randn({2, 24, 32});
  Call call;
  EXPECT_LE(relative_error(layer->forward(x, call), plain->forward(x, call)), 2e-6);
  EXPECT_EQ(layer->make_state()->spec().bytes(1000), layer->make_state()->spec().bytes(100));
  config.options = {{"window", {2, 3}}, {"causal", {1, 0}}};
  const auto grid = make_layer("fna", config);
  EXPECT_FALSE(grid->takes(Pattern::kCausalSelf));
  call.pattern = Pattern::kNoncausalSelf;
  call.grid = {2, {4, 6, 0}};
  EXPECT_EQ(grid->forward(x, call).sizes(), x.sizes());
  call.grid = {2, {4, 5, 0}};
  EXPECT_THROW(grid->forward(x, call), UsageError);
}

}  // namespace fna_test
}  // namespace heed::mixer
