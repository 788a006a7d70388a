// RWKV-7's core: the token loop of its equation, and the mechanisms that it becomes in limits.
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace rwkv7_test {

using testing::relative_error;

NamedTensors inputs(int64_t tokens, uint64_t seed) {
  Try one;
  one.sizes = {{"B", 1}, {"H", 2}, {"K", 16}, {"V", 12}};
  one.without = {"initial_state"};
  return testing::make_inputs(find_mechanism("rwkv7"), one, tokens, seed);
}

const char* const kForms[] = {"naive", "chunked", "recurrent"};

at::Tensor out(const char* id, const NamedTensors& in, const std::string& form,
               const SettingList& settings = {}) {
  return testing::run(find_mechanism(id), in, form, settings).at("out");
}

// S_t = diag(w_t) S_{t-1} - (a_t . kap_t)^T (kap_t S_{t-1}) + k_t^T v_t, out_t = r_t S_t.
TEST(Rwkv7, IsTheTokenLoopOfItsEquation) {
  const NamedTensors in = inputs(40, 3);
  const auto at_token = [&](const char* name, int64_t t) {
    return in.at(name).select(1, t).to(at::kDouble);
  };
  at::Tensor state = at::zeros({1, 2, 16, 12}, at::kDouble);
  std::vector<at::Tensor> outs;
  for (int64_t t = 0; t < 40; ++t) {
    const at::Tensor kap = at_token("kap", t);
    const at::Tensor read = kap.unsqueeze(-1).mul(state).sum(-2);
    state = at_token("log_decay", t).exp().unsqueeze(-1).mul(state);
    state = state.sub(at_token("a", t).mul(kap).unsqueeze(-1).mul(read.unsqueeze(-2)));
    state = state.add(at_token("k", t).unsqueeze(-1).mul(at_token("v", t).unsqueeze(-2)));
    outs.push_back(at_token("r", t).unsqueeze(-1).mul(state).sum(-2));
  }
  for (const char* form : kForms) {
    EXPECT_LE(relative_error(out("rwkv7", in, form), at::stack(outs, 1)), 2e-6) << form;
  }
}

TEST(Rwkv7, WithoutRemovalIsGatedLinearAttention) {
  NamedTensors in = inputs(70, 4);
  in["a"] = at::zeros_like(in.at("a"));
  const NamedTensors gla = {
      {"q", in.at("r")}, {"k", in.at("k")}, {"v", in.at("v")}, {"log_decay", in.at("log_decay")}};
  for (const char* form : kForms) {
    EXPECT_LE(relative_error(out("rwkv7", in, form), out("gla", gla, form, {{"scale", "1"}})), 2e-6)
        << form;
  }
}

// With one rate for all channels, no decay and k = a kap it is the delta rule with the key kap.
TEST(Rwkv7, WithOneRateAndItsOwnKeyIsTheDeltaRule) {
  NamedTensors in = inputs(70, 5);
  const at::Tensor rate = in.at("a").slice(-1, 0, 1);
  in["a"] = rate.expand_as(in.at("k")).contiguous();
  in["k"] = in.at("kap").mul(rate);
  in["log_decay"] = at::zeros_like(in.at("log_decay"));
  const NamedTensors delta = {
      {"q", in.at("r")}, {"k", in.at("kap")}, {"v", in.at("v")}, {"beta", rate.squeeze(-1)}};
  for (const char* form : kForms) {
    const at::Tensor expected =
        testing::run(find_mechanism("deltanet"), delta, "naive", {{"scale", "1"}}, at::kDouble)
            .at("out");
    EXPECT_LE(relative_error(out("rwkv7", in, form), expected), 2e-6) << form;
  }
}

// a = 1 and a unit kap take out exactly what the key kap would read: nothing is left of it.
TEST(Rwkv7, FullRemovalForgetsWhatItsKeyReads) {
  NamedTensors in = inputs(1, 6);
  const at::Tensor kap = in.at("kap").div(in.at("kap").norm(2, -1, true));
  in["kap"] = kap;
  in["r"] = kap;
  in["a"] = at::ones_like(in.at("a"));
  in["k"] = at::zeros_like(in.at("k"));
  in["log_decay"] = at::zeros_like(in.at("log_decay"));
  in["initial_state"] = at::randn({1, 2, 16, 12});
  for (const char* form : kForms) {
    EXPECT_LE(out("rwkv7", in, form).abs().max().item<double>(), 2e-6) << form;
  }
}

LayerConfig at_layer(int64_t layer) {
  LayerConfig config;
  config.hidden = 24;
  config.heads = 3;
  config.layer = layer;
  return config;
}

// The first layer leaves its values; the next one moves its own towards them.
TEST(Rwkv7, LaterLayersReadTheValuesOfTheFirst) {
  at::manual_seed(7);
  const auto first = make_layer("rwkv7", at_layer(0)), next = make_layer("rwkv7", at_layer(1));
  for (Layer* layer : {first.get(), next.get()}) {
    for (auto& [name, t] : layer->parameters()) t.add_(at::randn(t.sizes()).mul(0.1));
  }
  const at::Tensor x = at::randn({2, 9, 24});
  const auto run = [&](Layer& layer, Shared* shared) {
    Call call;
    call.shared = shared;
    return layer.forward(x, call);
  };
  Shared shared, none;
  run(*first, &shared);
  ASSERT_EQ(shared.size(), 1U);
  const at::Tensor values = shared.begin()->second.clone();
  const at::Tensor alone = run(*next, nullptr), behind = run(*next, &shared);
  EXPECT_GE(relative_error(behind, alone), 1e-3);
  EXPECT_TRUE(shared.begin()->second.equal(values)) << "the first layer's values stay";
  EXPECT_TRUE(run(*next, &none).equal(alone)) << "a first layer of its kind has only its own";
  next->parameters().at("value.base").fill_(-1e9);  // sigmoid 0: its own values
  EXPECT_LE(relative_error(run(*next, &shared), run(*next, nullptr)), 1e-6);
  EXPECT_EQ(first->parameters().size() + 3, next->parameters().size());
}

}  // namespace rwkv7_test
}  // namespace heed::mixer
