// HiP attention's must-hold list: a budget of everything is dense attention; the right number of
// distinct, causal blocks; a single peak is found; both searches agree.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace {

using testing::relative_error;

constexpr int64_t kT = 300;

NamedTensors inputs(uint64_t seed) {
  Try one;
  one.sizes = {{"B", 2}, {"H", 4}, {"Hk", 2}, {"D", 16}, {"V", 12}};
  return testing::make_inputs(find_mechanism("hip"), one, kT, seed);
}

NamedTensors run(const NamedTensors& in, const char* form, const SettingList& settings) {
  return testing::run(find_mechanism("hip"), in, form, settings);
}

const SettingList kSmall = {
    {"topk", "16"}, {"block_q", "16"}, {"block_k", "2"}, {"window", "10"}, {"sinks", "4"}};

TEST(Hip, ABudgetOfEverythingIsDense) {
  const NamedTensors in = inputs(1);
  const at::Tensor want =
      testing::run(find_mechanism("softmax"), in, "parallel", {{"causal", "true"}}).at("out");
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(run(in, form, {{"topk", "512"}, {"window", "10"}}).at("out"), want),
              2e-6);
  }
}

TEST(Hip, ChoosesDistinctCausalBlocksAndBothSearchesAgree) {
  const NamedTensors in = inputs(2);
  const NamedTensors fast = run(in, "parallel", kSmall), naive = run(in, "naive", kSmall);
  EXPECT_TRUE(fast.at("indices").equal(naive.at("indices")));
  EXPECT_LE(relative_error(fast.at("out"), naive.at("out")), 2e-6);
  const at::Tensor chosen = fast.at("indices");  // [B,H,19,8]
  for (int64_t i = 0; i < 19; ++i) {
    const int64_t n = std::max<int64_t>(std::min<int64_t>((i + 1) * 16, kT) - 10, 0);
    const at::Tensor row = chosen.select(2, i);
    const int64_t count = std::min<int64_t>((n + 1) / 2, 8);
    EXPECT_TRUE(row.ge(0).sum(2).eq(count).all().item<bool>()) << i;
    EXPECT_LT(row.max().item<int64_t>() * 2, n) << i;
    const at::Tensor step = row.slice(2, 1).sub(row.slice(2, 0, 7));
    EXPECT_TRUE(step.gt(0).logical_or(row.slice(2, 0, 7).lt(0)).all().item<bool>()) << i;
  }
}

TEST(Hip, FindsASinglePeak) {
  // Scores fall with the distance from key 100: its block must be among the chosen.
  NamedTensors in = inputs(3);
  const at::Tensor distance = at::arange(kT).sub(100).abs().to(at::kFloat);
  in["q"] = at::ones({1, kT, 1, 1}), in["v"] = at::randn({1, kT, 1, 3});
  in["k"] = distance.neg().view({1, kT, 1, 1}).div(50.0);
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor chosen = run(in, form, kSmall).at("indices").select(2, 18).flatten();
    EXPECT_TRUE(chosen.eq(50).any().item<bool>()) << form;
  }
}

}  // namespace
}  // namespace heed::mixer
