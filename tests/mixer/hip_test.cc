// HiP attention's must-hold list: a budget of everything is dense attention; the right number of
// distinct, causal blocks; a single peak is found; both searches agree.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace hip_test {

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

// Of independent scores the search finds more of the largest than a choice at random would.
TEST(Hip, RecallsMoreThanChance) {
  NamedTensors in = inputs(4);
  const at::Tensor chosen = run(in, "parallel", kSmall).at("indices").select(2, 18);  // [B,H,8]
  const int64_t n = kT - 10;
  const at::Tensor q = in["q"].slice(1, 288, kT).transpose(1, 2);
  const at::Tensor k = in["k"].slice(1, 0, n).repeat_interleave(2, 2).transpose(1, 2);
  const at::Tensor score = at::matmul(q, k.transpose(2, 3)).amax(2);  // [B,H,n]
  const at::Tensor top = std::get<1>(score.topk(16, -1));
  const at::Tensor found =
      at::floor_divide(top, 2).unsqueeze(3).eq(chosen.unsqueeze(2)).any(3).to(at::kFloat);
  EXPECT_GT(found.mean().item<double>(), 16.0 / static_cast<double>(n));
}

// Blocks of one query: the layer's text may be cut anywhere (layer_property_test). Larger blocks:
// cut where blocks end it is the same too; a budget of everything is softmax attention.
TEST(Hip, TheLayerGoesBlockByBlock) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4, config.kv_heads = 2;
  config.options = {{"topk", 8}, {"block_q", 8}, {"window", 6}, {"sinks", 2}};
  at::manual_seed(5);
  const auto layer = make_layer("hip", config);
  for (auto& [name, t] : layer->parameters()) t.mul_(10);
  const at::Tensor x = at::randn({1, 60, 32});
  Call whole;
  const at::Tensor want = layer->forward(x, whole);
  const auto state = layer->make_state();
  std::vector<at::Tensor> parts;
  for (const auto& [begin, end] : {std::pair{0, 24}, {24, 32}, {32, 60}}) {
    Call call;
    call.states = {state.get()};
    parts.push_back(layer->forward(x.slice(1, begin, end), call));
  }
  EXPECT_LE(relative_error(at::cat(parts, 1), want), 5e-6);
  config.options = Json::object();
  const auto plain = make_layer("softmax", config);
  for (auto& [name, t] : plain->parameters()) t.copy_(layer->parameters().at(name));
  const at::Tensor dense = plain->forward(x, whole);
  EXPECT_GT(relative_error(want, dense), 1e-3);
  const auto wide = make_layer("hip", config);
  for (auto& [name, t] : wide->parameters()) t.copy_(layer->parameters().at(name));
  EXPECT_LE(relative_error(wide->forward(x, whole), dense), 5e-6);
}

// With a refresh of 4 every fourth token searches and reads what it would read alone; those between
// read the same blocks behind a window that grows, so that nothing is lost: a budget of everything
// stays softmax attention.
TEST(Hip, AChoiceServesSomeSteps) {
  at::manual_seed(6);
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({1, 60, 32});
  NamedTensors weights;
  const auto steps = [&](const std::string& id, const Json& options) {
    LayerConfig config;
    config.hidden = 32, config.heads = 4, config.kv_heads = 2;
    config.options = options;
    const auto layer = make_layer(id, config);
    for (auto& [name, t] : layer->parameters()) {
      if (weights.count(name) == 0) weights[name] = t.mul(10);
      t.copy_(weights[name]);
    }
    auto state = layer->make_state();
    std::vector<at::Tensor> outs;
    for (int64_t i = 0; i < 60; ++i) {
      if (i == 30) state = state->fork();  // what was chosen goes along
      Call call;
      call.states = {state.get()};
      outs.push_back(layer->forward(x.slice(1, i, i + 1), call));
    }
    return at::cat(outs, 1);
  };
  Json options = {{"topk", 8}, {"block_q", 1}, {"window", 6}, {"sinks", 2}};
  const at::Tensor each = steps("hip", options);
  options["refresh"] = 4;
  const at::Tensor fourth = steps("hip", options);
  EXPECT_LE(relative_error(fourth.slice(1, 0, 60, 4), each.slice(1, 0, 60, 4)), 5e-6);
  EXPECT_GT(relative_error(fourth, each), 1e-3);
  options["topk"] = 64;
  EXPECT_LE(relative_error(steps("hip", options), steps("softmax", Json::object())), 5e-6);
}

}  // namespace hip_test
}  // namespace heed::mixer
