// Based: what must hold of its feature map and weights.
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace based_test {

using testing::relative_error;

constexpr int64_t kT = 60, kD = 16, kV = 12;

NamedTensors inputs(uint64_t seed, double size = 1.0) {
  at::manual_seed(seed);
  return {{"q", at::randn({1, kT, 2, kD}).mul(size)},
          {"k", at::randn({1, kT, 2, kD})},
          {"v", at::randn({1, kT, 2, kV})}};
}

at::Tensor out(const NamedTensors& in, const std::string& form, const SettingList& settings = {}) {
  return testing::run(find_mechanism("based"), in, form, settings).at("out");
}

at::Tensor logits(const NamedTensors& in) {
  const auto rows = [&](const char* name) { return in.at(name).to(at::kDouble).transpose(1, 2); };
  return at::matmul(rows("q"), rows("k").transpose(-1, -2)).div(std::sqrt(double{kD}));
}

at::Tensor weighted(const at::Tensor& weights, const NamedTensors& in) {
  return at::matmul(weights, in.at("v").to(at::kDouble).transpose(1, 2)).transpose(1, 2);
}

// The symmetric map [1; x; x_i^2/sqrt 2; x_i x_j (i<j)] / powers of D^(1/4) has M = 153 and the
// same products.
TEST(Based, SymmetricFeaturesGiveTheSameWeights) {
  const NamedTensors in = inputs(1);
  const at::Tensor pick = at::ones({kD, kD}).triu(1).flatten().nonzero().squeeze(-1);
  const auto features = [&](const char* name) {
    const at::Tensor x = in.at(name).to(at::kDouble).div(std::pow(double{kD}, 0.25));
    const at::Tensor pairs =
        x.unsqueeze(-1).mul(x.unsqueeze(-2)).flatten(-2).index_select(-1, pick);
    return at::cat({at::ones_like(x.slice(-1, 0, 1)), x, x.square().div(std::sqrt(2.0)), pairs}, -1)
        .transpose(1, 2);
  };
  const at::Tensor f = features("q");
  EXPECT_EQ(f.size(-1), 153);
  at::Tensor weights = at::matmul(f, features("k").transpose(-1, -2)).tril();
  weights = weights.div(weights.sum(-1, true));
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    EXPECT_LE(relative_error(out(in, form), weighted(weights, in)), 2e-6) << form;
  }
}

// 1 + s + s^2/2 is at least 1/2: outputs are averages, so values of one sign keep it.
TEST(Based, WeightsArePositive) {
  NamedTensors in = inputs(2, 5.0);
  in["v"] = in.at("v").abs();
  for (const char* causal : {"true", "false"}) {
    const at::Tensor y = out(in, "", {{"causal", causal}});
    EXPECT_GE(y.min().item<double>(), 0) << causal;
    EXPECT_LE(y.max().item<double>(), in.at("v").max().item<double>() * (1 + 1e-5)) << causal;
  }
}

// |1 + s + s^2/2 - e^s| <= |s|^3/6 e^|s|: small logits make it softmax attention.
TEST(Based, NearsSoftmaxAsLogitsShrink) {
  double before = 1e9;
  for (const double size : {1.0, 0.3, 0.1}) {
    const NamedTensors in = inputs(3, size);
    const at::Tensor s = logits(in);
    const at::Tensor taylor = s.square().mul(0.5).add(s).add(1.0);
    const at::Tensor bound = s.abs().pow(3).div(6).mul(s.abs().exp());
    EXPECT_TRUE(taylor.sub(s.exp()).abs().le(bound.add(1e-12)).all().item<bool>());
    const at::Tensor mask = at::ones({kT, kT}, at::kBool).tril().logical_not();
    const at::Tensor soft =
        s.masked_fill(mask, -std::numeric_limits<double>::infinity()).softmax(-1);
    const double error = relative_error(out(in, "chunked"), weighted(soft, in));
    EXPECT_LT(error, before / 5);
    before = error;
  }
}

TEST(Based, NoncausalReadsAllKeys) {
  const NamedTensors in = inputs(4);
  const at::Tensor s = logits(in);
  at::Tensor weights = s.square().mul(0.5).add(s).add(1.0);
  weights = weights.div(weights.sum(-1, true));
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(out(in, form, {{"causal", "false"}}), weighted(weights, in)), 2e-6);
  }
}

std::unique_ptr<Layer> layer(int64_t window) {
  LayerConfig config;
  config.hidden = 12;
  config.heads = 2;
  config.options = {{"window", window}, {"feature_dim", 4}};
  at::manual_seed(31);
  auto made = make_layer("based", config);
  for (auto& [name, t] : made->parameters()) t.add_(at::randn(t.sizes()).mul(0.3));
  return made;
}

// What the window adds to the output, by layers that share the rest.
at::Tensor window_branch(Layer& both, const at::Tensor& x) {
  const auto alone = layer(0);
  for (auto& [name, t] : alone->parameters()) t.copy_(both.parameters().at(name));
  Call one, two;
  return both.forward(x, one).sub(alone->forward(x, two));
}

TEST(Based, AWindowOfTheWholeSequenceIsSoftmaxAttention) {
  const auto both = layer(20);
  const at::Tensor x = at::randn({1, 20, 12}), wide = x.to(at::kDouble);
  const auto heads_of = [&](const char* name) {
    return at::matmul(wide, both->parameters().at(name).to(at::kDouble).t())
        .view({1, 20, 2, 6})
        .transpose(1, 2);
  };
  const auto turned = [&](const at::Tensor& t) {
    const at::Tensor angle = at::arange(20, at::kDouble)
                                 .unsqueeze(-1)
                                 .mul(at::pow(1e4, at::arange(3, at::kDouble).div(-3)));
    const at::Tensor a = t.slice(-1, 0, 3), b = t.slice(-1, 3);
    return at::cat(
        {a.mul(angle.cos()).sub(b.mul(angle.sin())), b.mul(angle.cos()).add(a.mul(angle.sin()))},
        -1);
  };
  const at::Tensor q = turned(heads_of("window.q_proj.weight")),
                   k = turned(heads_of("window.k_proj.weight"));
  const at::Tensor mask = at::ones({20, 20}, at::kBool).tril().logical_not();
  const at::Tensor soft = at::matmul(q, k.transpose(-1, -2))
                              .div(std::sqrt(6.0))
                              .masked_fill(mask, -std::numeric_limits<double>::infinity())
                              .softmax(-1);
  const at::Tensor o = at::matmul(soft, heads_of("v_proj.weight")).transpose(1, 2).flatten(2);
  const at::Tensor y = at::matmul(o, both->parameters().at("o_proj.weight").to(at::kDouble).t());
  EXPECT_LE(relative_error(window_branch(*both, x), y), 1e-5);
}

TEST(Based, TheWindowKnowsNothingOlder) {
  const auto both = layer(5);
  const at::Tensor x = at::randn({1, 20, 12});
  const at::Tensor changed = at::cat({at::randn({1, 10, 12}), x.slice(1, 10)}, 1);
  const at::Tensor a = window_branch(*both, x), b = window_branch(*both, changed);
  EXPECT_LE(relative_error(b.slice(1, 14), a.slice(1, 14)), 1e-5);
  EXPECT_GE(relative_error(b.slice(1, 13, 14), a.slice(1, 13, 14)), 1e-3);
}

}  // namespace based_test
}  // namespace heed::mixer
