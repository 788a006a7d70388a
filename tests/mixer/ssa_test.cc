// Selective self-attention's must-hold list.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace ssa_test {

using testing::relative_error;

NamedTensors inputs(uint64_t seed) {
  Try one;
  one.sizes = {{"B", 2}, {"Hq", 4}, {"Hk", 2}, {"D", 16}, {"Dv", 12}};
  return testing::make_inputs(find_mechanism("ssa"), one, 50, seed);
}

at::Tensor out(const char* id, const NamedTensors& in, const char* form,
               const SettingList& settings = {}) {
  return testing::run(find_mechanism(id), in, form, settings).at("out");
}

TEST(Ssa, WithoutGainsIsSoftmaxAttention) {
  const NamedTensors all = inputs(1);
  const NamedTensors plain = {{"q", all.at("q")}, {"k", all.at("k")}, {"v", all.at("v")}};
  NamedTensors zero = plain;
  zero["fq"] = at::zeros_like(all.at("fq")), zero["fv"] = at::zeros_like(all.at("fv"));
  zero["alpha"] = at::full({1}, -200.0);  // sigmoid 0
  const at::Tensor want = out("softmax", plain, "parallel", {{"causal", "true"}});
  for (const char* form : {"naive", "parallel", "recurrent"}) {
    EXPECT_LE(relative_error(out("ssa", plain, form), want), 2e-6) << form;
    EXPECT_LE(relative_error(out("ssa", zero, form), want), 2e-6) << form;
  }
}

TEST(Ssa, NoTemperatureGivesTheMean) {
  NamedTensors in = inputs(2);
  in.erase("alpha"), in.erase("fv");
  in["fq"] = at::full_like(in["fq"], -200.0);  // tau = 0
  const at::Tensor v = in["v"].repeat_interleave(2, 2);
  const at::Tensor mean = v.cumsum(1).div(at::arange(1, 51).view({1, 50, 1, 1}));
  for (const char* form : {"naive", "parallel", "recurrent"}) {
    EXPECT_LE(relative_error(out("ssa", in, form), mean), 2e-6) << form;
  }
}

TEST(Ssa, FirstRowHasNoPositionGain) {
  NamedTensors in = inputs(3), other = in;
  other["alpha"] = in["alpha"].add(3.0);
  for (const char* position : {"sigmoid", "exp", "linear"}) {
    const SettingList settings = {{"position", position}};
    const at::Tensor a = out("ssa", in, "parallel", settings);
    const at::Tensor b = out("ssa", other, "parallel", settings);
    EXPECT_TRUE(a.slice(1, 0, 1).equal(b.slice(1, 0, 1))) << position;
    EXPECT_GT(relative_error(a, b), 1e-3) << position;
  }
}

TEST(Ssa, RowsAreNeverMoreSpreadWithALargerTemperature) {
  NamedTensors in = inputs(4);
  in.erase("alpha"), in.erase("fv");
  in["v"] = at::eye(50).view({1, 50, 1, 50}).expand({2, 50, 2, 50}).contiguous();
  at::Tensor before;
  for (const double f : {-2.0, -0.5, 0.0, 0.7, 2.0}) {  // tau = 1 + tanh f > 0
    in["fq"] = at::full_like(in["fq"], f);
    const at::Tensor w = out("ssa", in, "parallel").to(at::kDouble);
    const at::Tensor entropy = w.mul(w.clamp_min(1e-300).log()).sum(-1).neg();
    if (before.defined()) {
      EXPECT_TRUE(entropy.le(before.add(1e-6)).all().item<bool>()) << f;
      EXPECT_LT(entropy.sum().item<double>(), before.sum().item<double>());
    }
    before = entropy;
  }
}

// With gains of zero and no share of the position the layer is softmax attention's; the cache holds
// v'.
TEST(Ssa, TheLayerBeginsAsSoftmaxAttentionAndCachesItsValues) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4, config.kv_heads = 2;
  config.options = {{"alpha", -200.0}, {"rope_theta", 100.0}, {"qk_norm", true}};
  at::manual_seed(5);
  const auto layer = make_layer("ssa", config);
  config.options.erase("alpha");
  const auto plain = make_layer("softmax", config);
  for (auto& [name, t] : plain->parameters()) t.copy_(layer->parameters().at(name));
  const at::Tensor x = at::randn({1, 30, 32});
  Call call;
  EXPECT_LE(relative_error(layer->forward(x, call), plain->forward(x, call)), 2e-6);
  layer->parameters().at("v_gain.bias").fill_(200.0);  // tau_v = 2
  const auto state = layer->make_state(), usual = plain->make_state();
  Call with, other;
  with.states = {state.get()}, other.states = {usual.get()};
  layer->forward(x, with), plain->forward(x, other);
  NamedTensors saved, kept;
  state->save(saved, ""), usual->save(kept, "");
  EXPECT_LE(relative_error(saved.at("h1.v"), kept.at("h1.v").mul(2.0)), 2e-6);
}

}  // namespace ssa_test
}  // namespace heed::mixer
