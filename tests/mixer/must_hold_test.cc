// What the papers say must hold for each mixer, in float64 where a formula is exact.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace must_hold_test {

using testing::relative_error;
using testing::SettingList;

constexpr int64_t kT = 70, kK = 16, kV = 12;

at::Tensor tokens(int64_t width, uint64_t seed, int64_t heads = 2) {
  at::manual_seed(seed);
  return at::randn({1, kT, heads, width});
}
at::Tensor unit_keys(uint64_t seed) {
  const at::Tensor k = tokens(kK, seed);
  return k.div(k.norm(2, -1, true));
}
NamedTensors run(const char* id, const NamedTensors& in, const std::string& form = "",
                 const SettingList& settings = {}) {
  return testing::run(find_mechanism(id), in, form, settings);
}
at::Tensor out(const char* id, const NamedTensors& in, const std::string& form = "",
               const SettingList& settings = {}) {
  return run(id, in, form, settings).at("out");
}
const std::string kForms[] = {"naive", "chunked", "recurrent"};
constexpr double kBound = 2e-6;

TEST(Gla, WithoutDecayIsLinearAttention) {
  const NamedTensors in = {{"q", tokens(kK, 1)}, {"k", tokens(kK, 2)}, {"v", tokens(kV, 3)}};
  NamedTensors gated = in;
  gated["log_decay"] = at::zeros({1, kT, 2, kK});
  for (const auto& form : kForms) {
    EXPECT_LE(relative_error(out("gla", gated, form), out("linear-attention", in, form)), kBound);
  }
}

TEST(Gla, WithConstantDecayIsRetention) {
  const NamedTensors in = {{"q", tokens(kK, 1)}, {"k", tokens(kK, 2)}, {"v", tokens(kV, 3)}};
  NamedTensors gated = in;
  const at::Tensor a =
      at::log1p(at::exp2(at::arange(2, at::kDouble).add(5).neg()).neg()).to(at::kFloat);
  gated["log_decay"] = a.view({1, 1, 2, 1}).expand({1, kT, 2, kK});
  for (const auto& form : kForms) {
    EXPECT_LE(relative_error(out("gla", gated, form), out("retnet", in, form)), kBound);
  }
}

TEST(Gla, AResetForgetsEverything) {
  NamedTensors in = {{"q", tokens(kK, 1)}, {"k", tokens(kK, 2)}, {"v", tokens(kV, 3)}};
  at::Tensor decay = at::full({1, kT, 2, kK}, -0.1);
  decay.select(1, 40).fill_(-std::numeric_limits<double>::infinity());
  in["log_decay"] = decay;
  const double scale = 1 / std::sqrt(static_cast<double>(kK));
  const at::Tensor own = in["q"]
                             .select(1, 40)
                             .mul(in["k"].select(1, 40))
                             .sum(-1, true)
                             .mul(scale)
                             .mul(in["v"].select(1, 40));
  for (const auto& form : kForms) {
    EXPECT_LE(relative_error(out("gla", in, form).select(1, 40), own), kBound) << form;
  }
}

TEST(DeltaNet, WithUnitKeysReadsBackWhatItWrote) {
  const at::Tensor k = unit_keys(2);
  const NamedTensors in = {
      {"q", k}, {"k", k}, {"v", tokens(kV, 3)}, {"beta", at::ones({1, kT, 2})}};
  for (const auto& form : kForms) {
    EXPECT_LE(relative_error(out("deltanet", in, form, {{"scale", "1"}}), in.at("v")), 1e-5)
        << form;
  }
}

TEST(DeltaNet, WithoutBetaKeepsItsState) {
  const at::Tensor state = at::randn({1, 2, kK, kV});
  const NamedTensors in = {{"q", tokens(kK, 1)},
                           {"k", unit_keys(2)},
                           {"v", tokens(kV, 3)},
                           {"beta", at::zeros({1, kT, 2})},
                           {"initial_state", state}};
  for (const auto& form : kForms) {
    EXPECT_TRUE(run("deltanet", in, form).at("final_state").equal(state)) << form;
  }
}

TEST(DeltaNet, WithOrthonormalKeysIsLinearAttention) {
  NamedTensors in = {{"q", tokens(kK, 1).slice(1, 0, kK)},
                     {"k", at::eye(kK).view({1, kK, 1, kK}).expand({1, kK, 2, kK})},
                     {"v", tokens(kV, 3).slice(1, 0, kK)}};
  const at::Tensor linear = out("linear-attention", in);
  in["beta"] = at::ones({1, kK, 2});
  for (const auto& form : kForms)
    EXPECT_LE(relative_error(out("deltanet", in, form), linear), kBound);
}

TEST(DeltaNet, IsOneGradientStepOfTheSquaredError) {
  const at::Tensor state = at::randn({1, 1, kK, kV}),
                   k = unit_keys(2).slice(1, 0, 1).slice(2, 0, 1),
                   v = tokens(kV, 3).slice(1, 0, 1).slice(2, 0, 1);
  const double beta = 0.7;
  const NamedTensors in = {
      {"q", k}, {"k", k}, {"v", v}, {"beta", at::full({1, 1, 1}, beta)}, {"initial_state", state}};
  const at::Tensor kv = k.view({kK, 1}), error = kv.t().mm(state[0][0]).sub(v.view({1, kV}));
  const at::Tensor step = state[0][0].sub(kv.mm(error).mul(beta));
  for (const auto& form : kForms) {
    EXPECT_LE(relative_error(run("deltanet", in, form).at("final_state")[0][0], step), kBound);
  }
}

TEST(GatedDeltaNet, WithoutDecayIsDeltaNetAndWithoutBetaOnlyDecays) {
  NamedTensors in = {{"q", tokens(kK, 1)},
                     {"k", unit_keys(2)},
                     {"v", tokens(kV, 3)},
                     {"beta", at::sigmoid(tokens(1, 4).squeeze(-1))}};
  const at::Tensor plain = out("deltanet", in);
  NamedTensors gated = in;
  gated["log_decay"] = at::zeros({1, kT, 2});
  const at::Tensor state = at::randn({1, 2, kK, kV});
  for (const auto& form : kForms) {
    EXPECT_LE(relative_error(out("gated-deltanet", gated, form), plain), kBound);
    NamedTensors still = gated;
    still["beta"] = at::zeros({1, kT, 2});
    still["log_decay"] = at::full({1, kT, 2}, -0.01);
    still["initial_state"] = state;
    EXPECT_LE(relative_error(run("gated-deltanet", still, form).at("final_state"),
                             state.mul(std::exp(-0.01 * kT))),
              kBound);
  }
}

TEST(Dplr, HoldsTheDeltaRules) {
  const at::Tensor k = unit_keys(2), beta = at::sigmoid(tokens(1, 4).squeeze(-1)),
                   decay = at::rand({1, kT, 2}).mul(-0.2);
  const NamedTensors delta = {
      {"q", tokens(kK, 1)}, {"k", k}, {"v", tokens(kV, 3)}, {"beta", beta}, {"log_decay", decay}};
  const at::Tensor b = beta.unsqueeze(-1), a = at::exp(decay).unsqueeze(-1);
  // The correction of gated DeltaNet reads after decay: r = a k here, where r reads before it.
  const NamedTensors general = {
      {"q", delta.at("q")},  {"k", k.mul(b)},
      {"p", k.mul(b).neg()}, {"r", k.mul(a)},
      {"v", delta.at("v")},  {"log_decay", decay.unsqueeze(-1).expand({1, kT, 2, kK})}};
  for (const auto& form : kForms) {
    EXPECT_LE(relative_error(out("dplr", general, form), out("gated-deltanet", delta, form)), 4e-6);
    NamedTensors wrong = general;  // reading after decay instead must show
    wrong["r"] = k;
    EXPECT_GE(relative_error(out("dplr", wrong, form), out("gated-deltanet", delta, form)), 1e-3);
  }
}

TEST(Mamba2, IsGlaWithScaledValues) {
  at::manual_seed(9);
  const at::Tensor x = tokens(kV, 1), dt = at::rand({1, kT, 2}).mul(0.3),
                   a = at::tensor({-1.0, -3.0});
  const at::Tensor b = at::randn({1, kT, 1, kK}), c = at::randn({1, kT, 1, kK}), d = at::randn({2});
  const NamedTensors in = {{"x", x}, {"dt", dt}, {"A", a.to(at::kFloat)},
                           {"B", b}, {"C", c},   {"D", d}};
  const NamedTensors gla = {
      {"q", c.expand({1, kT, 2, kK})},
      {"k", b.expand({1, kT, 2, kK})},
      {"v", x.mul(dt.unsqueeze(-1))},
      {"log_decay", dt.mul(a.to(at::kFloat)).unsqueeze(-1).expand({1, kT, 2, kK})}};
  for (const auto& form : kForms) {
    const at::Tensor expected =
        out("gla", gla, form, {{"scale", "1"}}).add(x.mul(d.view({1, 1, 2, 1})));
    EXPECT_LE(relative_error(out("mamba2", in, form), expected), kBound);
  }
}

TEST(Rwkv6, ReadsBeforeItWrites) {
  NamedTensors in = {{"r", tokens(kK, 1)},
                     {"k", tokens(kK, 2)},
                     {"v", tokens(kV, 3)},
                     {"log_decay", at::rand({1, kT, 2, kK}).mul(-0.2)},
                     {"u", at::zeros({2, kK})}};
  const at::Tensor state = at::randn({1, 2, kK, kV});
  in["initial_state"] = state;
  for (const auto& form : kForms) {
    const at::Tensor y = out("rwkv6", in, form);
    // Without a bonus the first token sees the initial state alone, neither decayed nor written to.
    EXPECT_LE(relative_error(y.select(1, 0),
                             in["r"].select(1, 0).unsqueeze(-2).matmul(state).squeeze(-2)),
              kBound);
    NamedTensors changed = in;
    changed["v"] = in["v"].clone();
    changed["v"].select(1, 30).fill_(7.0);
    const at::Tensor z = out("rwkv6", changed, form);
    EXPECT_LE(relative_error(z.slice(1, 0, 31), y.slice(1, 0, 31)), 1e-7)
        << "token 30 does not see itself";
    NamedTensors bonus = in;
    bonus["u"] = at::ones({2, kK});
    const at::Tensor own = in["r"].mul(in["k"]).sum(-1, true).mul(in["v"]);
    EXPECT_LE(relative_error(out("rwkv6", bonus, form), y.add(own)), kBound);
  }
}

TEST(LinearAttention, NormalisedWeightsSumToOne) {
  NamedTensors in = {{"q", at::rand({1, kT, 2, kK})},
                     {"k", at::rand({1, kT, 2, kK})},
                     {"v", at::ones({1, kT, 2, kV})}};
  for (const auto& form : kForms) {
    const at::Tensor y = out("linear-attention", in, form, {{"normalize", "true"}});
    EXPECT_LE(relative_error(y, in["v"]), kBound);
  }
  // Noncausal: every token reads what the last one does.
  in["v"] = tokens(kV, 3);
  for (const std::string form : {"naive", "parallel"}) {
    const NamedTensors causal = run("linear-attention", in),
                       all = run("linear-attention", in, form, {{"causal", "false"}});
    EXPECT_LE(relative_error(all.at("final_state"), causal.at("final_state")), kBound);
    EXPECT_LE(relative_error(all.at("out").select(1, kT - 1), causal.at("out").select(1, kT - 1)),
              kBound);
  }
}

TEST(Softmax, WeightsSumToOneAndKeysHaveNoOrder) {
  NamedTensors in = {
      {"q", tokens(kK, 1, 4)}, {"k", tokens(kK, 2)}, {"v", at::ones({1, kT, 2, kV})}};
  EXPECT_LE(relative_error(out("softmax", in), at::ones({1, kT, 4, kV})), kBound);
  in["v"] = tokens(kV, 3);
  const at::Tensor order = at::randperm(kT, at::kLong);
  NamedTensors shuffled = in;
  shuffled["k"] = in["k"].index_select(1, order);
  shuffled["v"] = in["v"].index_select(1, order);
  EXPECT_LE(relative_error(out("softmax", shuffled), out("softmax", in)), kBound);
  // A window as long as the sequence shows everything.
  EXPECT_LE(relative_error(out("softmax", in, "", {{"causal", "true"}, {"window", "70"}}),
                           out("softmax", in, "", {{"causal", "true"}})),
            kBound);
}

TEST(Softmax, HugeLogitsStayFinite) {
  NamedTensors in = {
      {"q", tokens(kK, 1).mul(300)}, {"k", tokens(kK, 2).mul(300)}, {"v", tokens(kV, 3)}};
  for (const std::string form : {"naive", "parallel"}) {
    EXPECT_TRUE(out("softmax", in, form).isfinite().all().item<bool>());
  }
}

TEST(SigmoidAttention, BiasAndUnions) {
  const int64_t n = kT;
  NamedTensors in = {{"q", at::zeros({1, kT, 2, kK})},
                     {"k", at::zeros({1, kT, 2, kK})},
                     {"v", at::ones({1, kT, 2, kV})}};
  // Equal keys and zero logits with bias -ln n: the row sum is n / (n + 1).
  EXPECT_LE(relative_error(out("sigmoid-attention", in),
                           at::full({1, kT, 2, kV}, static_cast<double>(n) / (n + 1))),
            kBound);
  in = {{"q", tokens(kK, 1)}, {"k", tokens(kK, 2)}, {"v", tokens(kV, 3)}};
  const SettingList bias = {{"bias", "-2"}};
  const auto part = [&](int64_t begin, int64_t end) {
    return NamedTensors{
        {"q", in["q"]}, {"k", in["k"].slice(1, begin, end)}, {"v", in["v"].slice(1, begin, end)}};
  };
  const at::Tensor whole = out("sigmoid-attention", in, "", bias);
  EXPECT_LE(relative_error(out("sigmoid-attention", part(0, 30), "", bias)
                               .add(out("sigmoid-attention", part(30, kT), "", bias)),
                           whole),
            kBound);
  // For a very negative bias the weights are those of an unnormalised softmax.
  const NamedTensors soft = run("softmax", in);
  const at::Tensor expected = soft.at("out").mul(at::exp(soft.at("lse")).unsqueeze(-1));
  EXPECT_LE(relative_error(out("sigmoid-attention", in, "", {{"bias", "-15"}}).mul(std::exp(15.0)),
                           expected),
            1e-4);
  // A key that is hidden changes nothing.
  NamedTensors hidden = in;
  hidden["key_bias"] = at::zeros({1, kT, 2});
  hidden["key_bias"].slice(1, 50).fill_(-std::numeric_limits<double>::infinity());
  EXPECT_LE(relative_error(out("sigmoid-attention", hidden, "", bias),
                           out("sigmoid-attention", part(0, 50), "", bias)),
            kBound);
}

}  // namespace must_hold_test
}  // namespace heed::mixer
