// Mixture of heads' must-hold list: gates of 1, exact zeros, sums of gates, the balance of a
// uniform router.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace moh_test {

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
      EXPECT_LE(relative_error(y.at("out"), o.mul(y.at("gates").unsqueeze(3))), 2e-6)
          << gate << " " << form;
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

TEST(Moh, AnEqualRouterWithAllHeadsActiveIsPlainAttention) {
  NamedTensors in = inputs(5);
  for (const char* name : {"shared_logits", "routed_logits", "branch_logits"}) in[name].zero_();
  const NamedTensors plain = {{"q", in.at("q")}, {"k", in.at("k")}, {"v", in.at("v")}};
  const at::Tensor want = testing::run(find_mechanism("softmax"), plain, "parallel", {}).at("out");
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(run(in, {{"topk", "3"}}, form).at("out"), want), 2e-6) << form;
  }
}

TEST(Moh, SkippingHeadsIsMaskingThem) {
  NamedTensors in = inputs(6);
  const NamedTensors heads = run(in, {{"topk", "1"}});
  in["wo"] = at::randn({4, 6, 5});
  const at::Tensor y = run(in, {{"topk", "1"}}).at("out");
  const at::Tensor& g = heads.at("gates");
  for (int64_t t = 0; t < 30; t += 7) {
    at::Tensor sum = at::zeros({5});
    int read = 0;
    for (int64_t h = 0; h < 4; ++h) {
      if (g[0][t][h].item<double>() == 0) {
        EXPECT_TRUE(heads.at("out")[0][t][h].eq(0).all().item<bool>());
        continue;
      }
      ++read;
      sum = sum.add(at::matmul(heads.at("out")[0][t][h], in["wo"][h]));
    }
    EXPECT_EQ(read, 2);
    EXPECT_LE(relative_error(y[0][t], sum), 2e-6);
  }
}

// Routers of zeros, all heads active: the layer is softmax attention's; the loss is K times its
// coefficient; the gate "norm" leaves out the heads with the shortest queries.
TEST(Moh, TheLayersRoutersAndLoss) {
  LayerConfig config;
  config.hidden = 32, config.heads = 8;
  config.options = {{"shared", 2}, {"topk", 6}};
  at::manual_seed(1);
  const auto layer = make_layer("moh", config);
  config.options = Json::object();
  const auto plain = make_layer("softmax", config);
  const at::Tensor x = at::randn({2, 9, 32});
  for (auto& [name, t] : plain->parameters()) t.copy_(layer->parameters().at(name));
  for (const char* name : {"router.weight", "shared_router.weight", "branch_router.weight"}) {
    layer->parameters().at(name).zero_();
  }
  Aux aux;
  Call call, other;
  call.aux = &aux;
  EXPECT_LE(relative_error(layer->forward(x, call), plain->forward(x, other)), 2e-6);
  EXPECT_NEAR(aux.losses().at("moh").item<double>(), 0.01 * 6, 1e-6);

  config.options = {{"gate", "norm"}, {"shared", 4}, {"topk", 3}};
  at::manual_seed(1);
  const auto norm = make_layer("moh", config);
  for (auto& [name, t] : norm->parameters()) t.copy_(layer->parameters().at(name));
  norm->parameters().at("q_proj.weight").slice(0, 24, 28).mul_(1e-3);  // head 6
  plain->parameters().at("q_proj.weight").slice(0, 24, 28).mul_(1e-3);
  plain->parameters().at("o_proj.weight").slice(1, 24, 28).zero_();
  EXPECT_LE(relative_error(norm->forward(x, other), plain->forward(x, other)), 2e-6);
  for (auto& [name, t] : norm->parameters()) t.requires_grad_();
  const at::AutoGradMode mode(true);
  const at::Tensor y = norm->forward(x, other);
  EXPECT_LE(relative_error(y.detach(), plain->forward(x, other)), 2e-6) << "straight through";
  EXPECT_TRUE(y.requires_grad());
}

}  // namespace moh_test
}  // namespace heed::mixer
