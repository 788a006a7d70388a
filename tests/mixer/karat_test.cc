// Kolmogorov-Arnold attention: without harmonics only the base is left; harmonics repeat; linear in
// the coefficients.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace karat_test {

using testing::relative_error;

NamedTensors inputs(uint64_t seed) {
  Try one;
  one.sizes = {{"B", 2}, {"H", 3}, {"D", 8}, {"Dv", 6}, {"r", 2}, {"G", 4}};
  return testing::make_inputs(find_mechanism("karat"), one, 70, seed);
}

at::Tensor out(const NamedTensors& in, const char* form, const SettingList& settings = {}) {
  return testing::run(find_mechanism("karat"), in, form, settings).at("out");
}

TEST(Karat, WithoutHarmonicsTheIdentityIsLinearAttention) {
  NamedTensors in = inputs(1);
  in["a"].zero_(), in["b"].zero_();
  const at::Tensor q = in["q"].transpose(1, 2), k = in["k"].transpose(1, 2);
  const at::Tensor sum = at::matmul(q, k.transpose(2, 3)).div(std::sqrt(8.0)).sum(-1, true);
  const at::Tensor mixed = at::einsum("hjr,bjhd->bhd", {in["w"], in["v"]}).unsqueeze(2);
  const at::Tensor want = sum.mul(mixed).transpose(1, 2);
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(out(in, form, {{"base", "identity"}}), want), 1e-5) << form;
    EXPECT_TRUE(out(in, form).eq(0).all().item<bool>()) << form;
  }
}

TEST(Karat, IsLinearInTheCoefficientsAndEvenInTheCosines) {
  NamedTensors in = inputs(2), twice = in, turned = in;
  twice["a"] = in["a"].mul(2.0), twice["b"] = in["b"].mul(2.0);
  turned["b"] = in["b"].neg(), turned["q"] = in["q"].neg();  // e -> -e
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor y = out(in, form);
    EXPECT_LE(relative_error(out(twice, form), y.mul(2.0)), 2e-6) << form;
    EXPECT_LE(relative_error(out(turned, form), y), 2e-6) << form;
  }
}

TEST(Karat, MixesWithARankOfAtMostR) {
  NamedTensors in = inputs(3);
  in["v"] = at::eye(70).view({1, 70, 1, 70}).expand({2, 70, 3, 70}).contiguous();
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor map = out(in, form).select(2, 1)[0].to(at::kDouble);  // [T,T]
    const at::Tensor values = std::get<1>(at::linalg_svd(map));
    EXPECT_GT(values[1].item<double>(), 1e-3 * values[0].item<double>()) << form;
    EXPECT_LT(values[2].item<double>(), 1e-5 * values[0].item<double>()) << form;
  }
}

TEST(Karat, HasThePeriodOfItsSeries) {
  NamedTensors in = inputs(4), turned = in;
  const double pi = std::acos(-1.0);
  // One more dimension adds 2 pi to every logit.
  const at::Tensor q = at::full({2, 70, 3, 1}, 2 * pi * 3), ones = at::ones({2, 70, 3, 1});
  in["q"] = at::cat({in["q"], at::zeros_like(q)}, 3), in["k"] = at::cat({in["k"], ones}, 3);
  turned["q"] = at::cat({turned["q"], q}, 3), turned["k"] = in["k"];
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(out(turned, form), out(in, form)), 1e-4) << form;  // angles round
    const SettingList silu = {{"base", "silu"}};
    EXPECT_GT(relative_error(out(turned, form, silu), out(in, form, silu)), 1e-2) << form;
  }
}

TEST(Karat, EqualLogitsGiveEqualRows) {
  NamedTensors in = inputs(5);
  in["q"] = in["q"].slice(1, 0, 1).expand_as(in["q"]).contiguous();
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor y = out(in, form, {{"base", "silu"}});
    EXPECT_LE(relative_error(y, y.slice(1, 0, 1).expand_as(y)), 2e-6) << form;
  }
}

// d phi / dx = sum_m m (b cos(m x) - a sin(m x)), with one key, rank 1 and widths of 1.
TEST(Karat, TheDerivativeIsThatOfTheSeries) {
  at::manual_seed(6);
  NamedTensors in = {{"q", at::randn({1, 9, 1, 1})},      {"k", at::full({1, 1, 1, 1}, 0.7)},
                     {"v", at::full({1, 1, 1, 1}, 1.0)},  {"a", at::randn({1, 1, 1, 5})},
                     {"b", at::randn({1, 1, 1, 5})},      {"w", at::ones({1, 1, 1})},
                     {"grad_out", at::ones({1, 9, 1, 1})}};
  const at::Tensor m = at::arange(1, 6, at::kDouble);
  const at::Tensor angle = in["q"].flatten().to(at::kDouble).mul(0.7).unsqueeze(1).mul(m);
  const at::Tensor want = in["b"]
                              .flatten()
                              .mul(at::cos(angle))
                              .sub(in["a"].flatten().mul(at::sin(angle)))
                              .mul(m)
                              .sum(1)
                              .mul(0.7);
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor grad =
        testing::run(find_mechanism("karat"), in, form, {}, at::kFloat, true).at("grad_q");
    EXPECT_LE(relative_error(grad.flatten(), want), 1e-5) << form;
  }
}

TEST(Karat, TheLayerIsForItsNumberOfTokens) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4;
  EXPECT_THROW(make_layer("karat", config), UsageError);
  config.options = {{"tokens", 20}};
  const auto layer = make_layer("karat", config);
  Call call;
  call.pattern = Pattern::kNoncausalSelf;
  EXPECT_EQ(layer->forward(at::randn({2, 20, 32}), call).size(1), 20);
  EXPECT_THROW(layer->forward(at::randn({2, 21, 32}), call), UsageError);
}

// Universal: a later layer reads the first one's coefficients, and their gradient is of both.
TEST(Karat, LayersShareAUniversalOperator) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4;
  config.options = {{"tokens", 12}, {"rank", 2}};
  at::manual_seed(3);
  const auto first = make_layer("karat", config);
  config.layer = 2;
  const auto own = make_layer("karat", config);
  config.options["universal"] = 0;
  const auto second = make_layer("karat", config);
  NamedTensors coefficients, weights;
  for (auto& [name, t] : first->parameters()) coefficients[name] = t;
  for (auto& [name, t] : second->parameters()) weights[name] = t;
  EXPECT_EQ(coefficients.count("a"), 1u);
  EXPECT_EQ(weights.count("a"), 0u);
  {
    const at::NoGradGuard no_grad;
    for (auto& [name, t] : own->parameters()) {
      t.copy_(weights.count(name) ? weights.at(name) : coefficients.at(name));
    }
  }
  const at::Tensor x = at::randn({1, 12, 32});
  Shared shared;
  Call call;
  call.pattern = Pattern::kNoncausalSelf;
  EXPECT_THROW(second->forward(x, call), UsageError);
  call.shared = &shared;
  EXPECT_THROW(second->forward(x, call), UsageError);
  first->forward(x, call);
  const at::Tensor out = second->forward(x, call);
  Call alone;
  alone.pattern = Pattern::kNoncausalSelf;
  EXPECT_LE(relative_error(out, own->forward(x, alone)), 1e-6);
  config.layer = 1, config.options["universal"] = 2;
  EXPECT_THROW(make_layer("karat", config), UsageError);
}

}  // namespace karat_test
}  // namespace heed::mixer
