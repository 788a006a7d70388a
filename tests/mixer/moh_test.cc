// Mixture of heads' must-hold list: gates of 1, exact zeros, sums of gates, the balance of a
// uniform router.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace {

using testing::relative_error;

NamedTensors inputs(uint64_t seed) {
  at::manual_seed(seed);
  return {{"q", at::randn({2, 30, 4, 8})},          {"k", at::randn({2, 30, 2, 8})},
          {"v", at::randn({2, 30, 2, 6})},          {"shared_logits", at::randn({2, 30, 1})},
          {"routed_logits", at::randn({2, 30, 3})}, {"branch_logits", at::randn({2, 30, 2})}};
}

NamedTensors run(const NamedTensors& in, const SettingList& settings, const char* form = "") {
  return testing::run(find_mechanism("moh"), in, form, settings);
}

TEST(Moh, OutIsAttentionTimesGates) {
  const NamedTensors in = inputs(1);
  const NamedTensors plain = {{"q", in.at("q")}, {"k", in.at("k")}, {"v", in.at("v")}};
  const at::Tensor o = testing::run(find_mechanism("softmax"), plain, "parallel", {}).at("out");
  for (const char* gate : {"code", "paper"}) {
    for (const char* form : {"naive", "parallel"}) {
      const NamedTensors y = run(in, {{"gate", gate}, {"topk", "2"}}, form);
      EXPECT_LE(relative_error(y.at("out"), o.mul(y.at("gates").unsqueeze(3))), 2e-6);
      EXPECT_TRUE(y.at("gates").slice(2, 1).eq(0).sum(2).eq(1).all().item<bool>()) << gate;
    }
  }
}

TEST(Moh, ReleasedGatesSumToTheHeads) {
  // a1 + a2 = 2 per token: shared gates sum to a1 Hs, routed to a2 K.
  const NamedTensors y = run(inputs(2), {{"gate", "code"}, {"topk", "2"}});
  const at::Tensor a = inputs(2).at("branch_logits").softmax(-1).mul(2.0);
  EXPECT_LE(relative_error(y.at("gates").slice(2, 0, 1), a.slice(2, 0, 1)), 2e-6);
  EXPECT_LE(relative_error(y.at("gates").slice(2, 1).sum(2, true), a.slice(2, 1).mul(2.0)), 2e-6);
}

TEST(Moh, AUniformRouterIsBalanced) {
  NamedTensors in = inputs(3);
  in["routed_logits"] = at::zeros({2, 30, 3});
  const NamedTensors y = run(in, {{"topk", "2"}});
  EXPECT_NEAR(y.at("balance").item<double>(), 2.0, 1e-6);  // Hr sum_h (1/Hr) f_h = K
}

TEST(Moh, NormGatesKeepSharedHeadsAndTheLongestQueries) {
  NamedTensors in = inputs(4);
  for (const char* name : {"shared_logits", "routed_logits", "branch_logits"}) in.erase(name);
  in["q"].select(2, 3).mul_(10.0);
  const at::Tensor g = run(in, {{"gate", "norm"}}).at("gates");
  const at::Tensor want = at::tensor({1.0, 1.0, 0.0, 1.0}, at::kFloat).expand_as(g);
  EXPECT_TRUE(g.equal(want));
}

}  // namespace
}  // namespace heed::mixer
