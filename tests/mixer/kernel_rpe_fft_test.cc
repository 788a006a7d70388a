// Kernelised attention with relative positions: what its entry says must hold.
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace kernel_rpe_fft_test {

using testing::relative_error;

NamedTensors run(const NamedTensors& in, const std::string& form, const SettingList& settings = {},
                 at::ScalarType dtype = at::kFloat) {
  return testing::run(find_mechanism("kernel-rpe-fft"), in, form, settings, dtype);
}

NamedTensors inputs(int64_t queries, int64_t keys, int64_t features = 12, uint64_t seed = 1) {
  at::manual_seed(seed);
  return {{"q", at::randn({2, queries, 3, 8})},
          {"k", at::randn({2, keys, 3, 8})},
          {"v", at::randn({2, keys, 3, 5})},
          {"b", at::randn({3, queries + keys - 1})},
          {"w", at::randn({8, features})}};
}

at::Tensor unit(const at::Tensor& x) {
  const at::Tensor y = x.to(at::kDouble);
  return y.div(y.norm(2, -1, true));
}
// [B,H,T,m]
at::Tensor features(const at::Tensor& x, const at::Tensor& w) {
  const at::Tensor y = unit(x);
  const at::Tensor exponent = at::matmul(y, w.to(at::kDouble)).sub(0.5);
  return exponent.exp().div(std::sqrt(static_cast<double>(w.size(1)))).transpose(1, 2);
}
at::Tensor output_of(const at::Tensor& weights, const at::Tensor& v) {
  return at::matmul(weights.div(weights.sum(-1, true)), v.to(at::kDouble).transpose(1, 2))
      .transpose(1, 2);
}

TEST(KernelRpeFft, EqualsTheDenseWeights) {
  for (const auto& [queries, keys] : {std::pair(33, 33), std::pair(9, 40), std::pair(40, 9)}) {
    const NamedTensors in = inputs(queries, keys);
    at::Tensor weights = at::matmul(features(in.at("q"), in.at("w")),
                                    features(in.at("k"), in.at("w")).transpose(2, 3));
    for (int64_t i = 0; i < queries; ++i) {
      weights.select(2, i).mul_(
          in.at("b").slice(1, queries - 1 - i, queries - 1 - i + keys).to(at::kDouble).exp());
    }
    const at::Tensor expected = output_of(weights, in.at("v"));
    for (const char* form : {"naive", "parallel", "fft"}) {
      EXPECT_LE(relative_error(run(in, form).at("out"), expected), 2e-6) << form;
    }
  }
}

TEST(KernelRpeFft, WithoutPositionsItIsLinearAttention) {
  NamedTensors in = inputs(30, 30);
  in["b"] = at::zeros_like(in.at("b"));
  const at::Tensor f = features(in.at("q"), in.at("w")), g = features(in.at("k"), in.at("w"));
  const at::Tensor expected = output_of(at::matmul(f, g.transpose(2, 3)), in.at("v"));
  for (const char* form : {"naive", "parallel", "fft"}) {
    EXPECT_LE(relative_error(run(in, form).at("out"), expected), 2e-6) << form;
  }
}

TEST(KernelRpeFft, ConstantsAndLengthsDoNotMatter) {
  const NamedTensors in = inputs(20, 25);
  NamedTensors shifted = in, longer = in;
  shifted["b"] = in.at("b").add(70.0);
  longer["q"] = in.at("q").mul(37.0);
  longer["k"] = in.at("k").mul(0.01);
  for (const char* form : {"naive", "parallel", "fft"}) {
    const at::Tensor out = run(in, form, {}, form[0] == 'n' ? at::kDouble : at::kFloat).at("out");
    EXPECT_LE(relative_error(run(shifted, form).at("out"), out), 1e-5)
        << form;  // b + 70 is rounded
    EXPECT_LE(relative_error(run(longer, form).at("out"), out), 2e-6) << form;
  }
}

// Causal with b = -s distance: the numerator is the recurrence with decay e^-s.
TEST(KernelRpeFft, LinearPositionsAreADecay) {
  const int64_t tokens = 40;
  const double s = 0.3;
  NamedTensors in = inputs(tokens, tokens);
  in["b"] = at::arange(1 - tokens, tokens, at::kFloat).mul(s).expand({3, 2 * tokens - 1});
  in["b"] = in.at("b").contiguous();
  const NamedTensors retnet = {
      {"q", features(in.at("q"), in.at("w")).transpose(1, 2).to(at::kFloat).contiguous()},
      {"k", features(in.at("k"), in.at("w")).transpose(1, 2).to(at::kFloat).contiguous()},
      {"v", at::cat({in.at("v"), at::ones({2, tokens, 3, 1})}, 3)},
      {"log_decay", at::full({3}, -s)}};
  const at::Tensor sums =
      testing::run(find_mechanism("retnet"), retnet, "naive", {{"scale", "1"}}).at("out");
  const at::Tensor expected = sums.slice(3, 0, 5).div(sums.slice(3, 5));
  for (const char* form : {"naive", "parallel", "fft"}) {
    EXPECT_LE(relative_error(run(in, form, {{"causal", "true"}}).at("out"), expected), 2e-6)
        << form;
  }
}

// Values of ones come back, and outputs stay among the values: weights are positive, of sum 1.
TEST(KernelRpeFft, RowsAreWeights) {
  NamedTensors in = inputs(30, 30);
  for (const char* causal : {"false", "true"}) {
    for (const char* form : {"naive", "parallel", "fft"}) {
      NamedTensors ones = in;
      ones["v"] = at::ones_like(in.at("v"));
      const at::Tensor out = run(ones, form, {{"causal", causal}}).at("out");
      EXPECT_LE(relative_error(out, at::ones_like(out)), 2e-6) << form;
      const at::Tensor y = run(in, form, {{"causal", causal}}).at("out"), v = in.at("v");
      EXPECT_TRUE(y.le(v.amax({1}, true).add(1e-5)).all().item<bool>()) << form;
      EXPECT_TRUE(y.ge(v.amin({1}, true).sub(1e-5)).all().item<bool>()) << form;
    }
  }
}

TEST(KernelRpeFft, ManyFeaturesApproachSoftmaxOfUnitVectors) {
  double before = 1;
  for (const int64_t count : {64, 4096}) {
    const NamedTensors in = inputs(12, 12, count);
    at::Tensor logits = at::matmul(unit(in.at("q")).transpose(1, 2),
                                   unit(in.at("k")).transpose(1, 2).transpose(2, 3));
    for (int64_t i = 0; i < 12; ++i) {
      logits.select(2, i).add_(in.at("b").slice(1, 11 - i, 23 - i));
    }
    const at::Tensor expected =
        at::matmul(at::softmax(logits, -1), in.at("v").to(at::kDouble).transpose(1, 2))
            .transpose(1, 2);
    const double error = relative_error(run(in, "parallel").at("out"), expected);
    EXPECT_LT(error, count == 64 ? 0.5 : 0.08);
    EXPECT_LT(error, before);
    before = error;
  }
}

TEST(KernelRpeFft, CausalNeedsAsManyKeysAsQueries) {
  EXPECT_THROW(run(inputs(5, 7), "naive", {{"causal", "true"}}), UsageError);
}

TEST(KernelRpeFft, LayerRefusesMoreTokensThanItsDistances) {
  LayerConfig config;
  config.hidden = 12;
  config.heads = 2;
  config.options = {{"length", 10}};
  const auto layer = make_layer("kernel-rpe-fft", config);
  const auto state = layer->make_state();
  Call call;
  call.states = {state.get()};
  layer->forward(at::randn({1, 10, 12}), call);
  try {
    layer->forward(at::randn({1, 1, 12}), call);
    ADD_FAILURE() << "no error";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("11 tokens are more than the 10"), std::string::npos);
  }
}

// A self pass that is not causal is a cross pass over itself, with the distances in both
// directions.
TEST(KernelRpeFft, LayerReadsAContext) {
  at::manual_seed(37);
  LayerConfig config;
  config.hidden = 12;
  config.heads = 2;
  const auto layer = make_layer("kernel-rpe-fft", config);
  for (auto& [name, t] : layer->parameters()) t.add_(at::randn(t.sizes()).mul(0.3));
  const at::Tensor x = at::randn({2, 7, 12});
  Call self, cross;
  self.pattern = Pattern::kNoncausalSelf;
  cross.pattern = Pattern::kNoncausalCross;
  cross.context = x;
  EXPECT_LE(relative_error(layer->forward(x, cross), layer->forward(x, self)), 1e-6);
  cross.context = at::cat({x, at::randn({2, 4, 12})}, 1);
  EXPECT_GE(relative_error(layer->forward(x, cross), layer->forward(x, self)), 1e-3);
}

}  // namespace kernel_rpe_fft_test
}  // namespace heed::mixer
