// Bi-level routing: all regions chosen is full attention; one region that chooses itself is window
// attention; the local part is a correlation.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "io/error.h"
#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace biformer_test {

using testing::relative_error;

NamedTensors inputs(uint64_t seed) {
  at::manual_seed(seed);
  return {{"q", at::randn({2, 48, 3, 8})},
          {"k", at::randn({2, 48, 3, 8})},
          {"v", at::randn({2, 48, 3, 6})}};
}

NamedTensors run(const NamedTensors& in, const char* form, SettingList settings) {
  settings.push_back({"grid", "6x8"});
  settings.push_back({"regions", "2"});
  return testing::run(find_mechanism("biformer"), in, form, settings);
}

TEST(BiFormer, AllRegionsAreFullAttention) {
  const NamedTensors in = inputs(1);
  const at::Tensor want =
      testing::run(find_mechanism("softmax"), in, "parallel", {{"scale", "0.2"}}).at("out");
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(run(in, form, {{"topk", "4"}, {"scale", "0.2"}}).at("out"), want),
              2e-6);
  }
}

TEST(BiFormer, SeesExactlyTheTokensOfItsRegions) {
  NamedTensors in = inputs(2);
  in["q"] = in["q"].slice(2, 0, 1), in["k"] = in["k"].slice(2, 0, 1);
  in["v"] = at::eye(48).expand({2, 48, 48}).unsqueeze(2).contiguous();
  for (const char* form : {"naive", "parallel"}) {
    const NamedTensors y = run(in, form, {{"topk", "2"}});
    const at::Tensor seen = y.at("out").squeeze(2).gt(0);  // [B,T,T]
    EXPECT_TRUE(seen.sum(2).eq(24).all().item<bool>()) << form;
    const at::Tensor p = at::arange(48);
    const at::Tensor region =
        at::floor_divide(p, 24).mul(2).add(at::floor_divide(p.remainder(8), 4));
    for (int64_t i = 0; i < 48; ++i) {
      const at::Tensor chosen = y.at("indices")[0][region[i].item<int64_t>()];
      const at::Tensor want = region.unsqueeze(1).eq(chosen.unsqueeze(0)).any(1);
      ASSERT_TRUE(seen[0][i].equal(want)) << form << " token " << i;
    }
  }
}

TEST(BiFormer, AKernelOfOneAddsTheValues) {
  NamedTensors in = inputs(3), local = in;
  local["lepe_weight"] = at::ones({18, 1, 1}), local["lepe_bias"] = at::full({18}, 0.5);
  const at::Tensor plain = run(in, "parallel", {{"topk", "2"}}).at("out");
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(
        relative_error(run(local, form, {{"topk", "2"}}).at("out"), plain.add(in["v"]).add(0.5)),
        2e-6);
  }
}

TEST(BiFormer, PermutingRegionsPermutesTheOutput) {
  const NamedTensors in = inputs(4);
  // Tokens of 4 regions of 3 x 4; regions 0 and 3 change places.
  std::vector<int64_t> order;
  for (int64_t row = 0; row < 6; ++row) {
    for (int64_t column = 0; column < 8; ++column) {
      const bool diagonal = (row < 3) == (column < 4);
      order.push_back(diagonal ? (row + 3) % 6 * 8 + (column + 4) % 8 : row * 8 + column);
    }
  }
  const at::Tensor moved = at::tensor(order, at::kLong);
  NamedTensors permuted;
  for (const auto& [name, t] : in) permuted[name] = t.index_select(1, moved);
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(run(permuted, form, {{"topk", "2"}}).at("out"),
                             run(in, form, {{"topk", "2"}}).at("out").index_select(1, moved)),
              2e-6)
        << form;
  }
}

// Gradients of q and k are those of attention over the chosen tokens: none goes to the choice.
TEST(BiFormer, RoutingHasNoGradient) {
  NamedTensors in = inputs(5);
  in["grad_out"] = at::randn({2, 48, 3, 6});
  const NamedTensors y =
      testing::run(find_mechanism("biformer"), in, "parallel",
                   {{"grid", "6x8"}, {"regions", "2"}, {"topk", "2"}}, at::kFloat, true);
  const at::Tensor p = at::arange(48);
  const at::Tensor region = at::floor_divide(p, 24).mul(2).add(at::floor_divide(p.remainder(8), 4));
  const at::Tensor chosen = y.at("indices").index_select(1, region);  // [B,T,topk]
  const at::Tensor seen =
      region.view({1, 1, 48, 1}).eq(chosen.unsqueeze(2)).any(3).unsqueeze(1);  // [B,1,T,T]
  const at::AutoGradMode mode(true);
  std::vector<at::Tensor> leaves;
  for (const char* name : {"q", "k", "v"}) {
    leaves.push_back(in[name].to(at::kDouble).requires_grad_());
  }
  const auto heads = [](const at::Tensor& t) { return t.transpose(1, 2); };
  const at::Tensor x = at::matmul(heads(leaves[0]), heads(leaves[1]).transpose(2, 3))
                           .div(std::sqrt(24.0))
                           .masked_fill(seen.logical_not(), -INFINITY);
  const at::Tensor out = at::matmul(x.softmax(-1), heads(leaves[2])).transpose(1, 2);
  const auto grads = torch::autograd::grad({out.mul(in["grad_out"]).sum()}, leaves);
  EXPECT_LE(relative_error(y.at("grad_q"), grads[0]), 1e-5);
  EXPECT_LE(relative_error(y.at("grad_k"), grads[1]), 1e-5);
}

TEST(BiFormer, TheLayerTakesAGrid) {
  LayerConfig config;
  config.hidden = 24, config.heads = 3;
  config.options = {{"regions", 2}, {"topk", 2}};
  const auto layer = make_layer("biformer", config);
  Call call;
  call.pattern = Pattern::kNoncausalSelf;
  EXPECT_THROW(layer->forward(at::randn({1, 48, 24}), call), UsageError);
  call.grid = {2, {6, 8, 0}};
  EXPECT_EQ(layer->forward(at::randn({1, 48, 24}), call).size(1), 48);
  call.grid = {2, {5, 8, 0}};
  EXPECT_THROW(layer->forward(at::randn({1, 40, 24}), call), UsageError);  // 5 rows, 2 regions
}

}  // namespace biformer_test
}  // namespace heed::mixer
