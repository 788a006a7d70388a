// Native sparse attention: blocks enough for the whole text are dense attention; gates are linear;
// given indices replace the choice.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace nsa_test {

using testing::relative_error;

constexpr int64_t kT = 70;

NamedTensors inputs(uint64_t seed) {
  at::manual_seed(seed);
  return {{"q", at::randn({2, kT, 4, 8})},  {"k", at::randn({2, kT, 2, 8})},
          {"v", at::randn({2, kT, 2, 6})},  {"g_cmp", at::zeros({2, kT, 4})},
          {"g_slc", at::zeros({2, kT, 4})}, {"g_swa", at::zeros({2, kT, 4})}};
}

at::Tensor out(const NamedTensors& in, const char* form, SettingList settings) {
  settings.push_back({"block", "8"});
  return testing::run(find_mechanism("nsa"), in, form, settings).at("out");
}

TEST(Nsa, EnoughBlocksOrAWideWindowAreDense) {
  NamedTensors in = inputs(1);
  const NamedTensors plain = {{"q", in["q"]}, {"k", in["k"]}, {"v", in["v"]}};
  const at::Tensor want =
      testing::run(find_mechanism("softmax"), plain, "parallel", {{"causal", "true"}}).at("out");
  for (const char* form : {"naive", "parallel"}) {
    NamedTensors one = in;
    one["g_slc"] = at::ones({2, kT, 4});
    EXPECT_LE(relative_error(out(one, form, {{"blocks", "9"}}), want), 2e-6) << form;
    one = in;
    one["g_swa"] = at::ones({2, kT, 4});
    EXPECT_LE(relative_error(out(one, form, {{"window", "70"}}), want), 2e-6) << form;
  }
}

TEST(Nsa, TheCompressedBranchReadsCompleteBlocksOnly) {
  NamedTensors in = inputs(2);
  in["g_cmp"] = at::ones({2, kT, 4});
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor y = out(in, form, {});
    EXPECT_TRUE(y.slice(1, 0, 7).eq(0).all().item<bool>()) << form;
    const at::Tensor mean = in["v"].slice(1, 0, 8).mean(1, true).repeat_interleave(2, 2);
    EXPECT_LE(relative_error(y.slice(1, 7, 15), mean.expand({2, 8, 4, 6})), 2e-6) << form;
  }
}

TEST(Nsa, GivenIndicesReplaceTheChoice) {
  NamedTensors in = inputs(3);
  in["g_slc"] = at::ones({2, kT, 4});
  in["block_indices"] = at::full({2, kT, 2, 2}, -1, at::kLong);
  in["block_indices"].select(3, 1).fill_(0);  // block 0 alone
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor y = out(in, form, {});
    NamedTensors cut = {
        {"q", in["q"].slice(1, 8)}, {"k", in["k"].slice(1, 0, 8)}, {"v", in["v"].slice(1, 0, 8)}};
    const at::Tensor want = testing::run(find_mechanism("softmax"), cut, "parallel", {}).at("out");
    EXPECT_LE(relative_error(y.slice(1, 8), want), 2e-6) << form;
  }
}

// The layer keeps one mean a block; its rows of either length go back together.
TEST(Nsa, TheLayerKeepsMeansOfBlocks) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4, config.kv_heads = 2;
  config.options = {{"block", 8}, {"blocks", 3}, {"window", 0}};
  at::manual_seed(4);
  const auto layer = make_layer("nsa", config);
  for (auto& [name, t] : layer->parameters()) t.mul_(6.0);
  const at::Tensor x = at::randn({1, 70, 32});
  Call whole, first, again;
  const at::Tensor want = layer->forward(x, whole);
  const auto state = layer->make_state();
  first.states = again.states = {state.get()};
  layer->forward(x.slice(1, 0, 63), first);
  EXPECT_EQ(state->rows(1).length(), 7);
  state->truncate(41);
  EXPECT_EQ(state->rows(1).length(), 5);
  EXPECT_LE(relative_error(layer->forward(x.slice(1, 41), again), want.slice(1, 41)), 5e-6);
  EXPECT_EQ(state->rows(1).length(), 8);
}

}  // namespace nsa_test
}  // namespace heed::mixer
