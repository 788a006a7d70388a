// URPE's must-hold list: linear in C, C = 1 is relative attention, positions show with constant
// inputs only through C.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace urpe_test {

using testing::relative_error;

constexpr int64_t kT = 45;

NamedTensors inputs(uint64_t seed) {
  Try one;
  one.sizes = {{"B", 2}, {"Hq", 4}, {"Hk", 2}, {"D", 16}, {"Dv", 12}, {"P", kT}};
  NamedTensors in = testing::make_inputs(find_mechanism("urpe"), one, kT, seed);
  in.erase("key_mask");
  return in;
}

at::Tensor out(const char* id, const NamedTensors& in, const char* form,
               const SettingList& settings = {}) {
  return testing::run(find_mechanism(id), in, form, settings).at("out");
}

TEST(Urpe, WithOnesIsRelativeAttention) {
  NamedTensors in = inputs(1);
  in["c"] = at::ones_like(in["c"]);
  NamedTensors plain = {{"q", in["q"]}, {"k", in["k"]}, {"v", in["v"]}};
  in.erase("b");
  for (const char* causal : {"false", "true"}) {
    const SettingList settings = {{"causal", causal}};
    const at::Tensor want = out("softmax", plain, "parallel", settings);
    for (const char* form : {"naive", "parallel"}) {
      EXPECT_LE(relative_error(out("urpe", in, form, settings), want), 2e-6) << form << causal;
    }
  }
}

TEST(Urpe, IsLinearInCAndBlindToAConstantBias) {
  NamedTensors in = inputs(2), more = in;
  more["c"] = in["c"].mul(-3.0);
  more["b"] = in["b"].add(5.0);
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(out("urpe", more, form), out("urpe", in, form).mul(-3.0)), 4e-6);
  }
}

TEST(Urpe, ConstantInputsShowPositionsOnlyThroughC) {
  NamedTensors in = inputs(3);
  for (const char* name : {"q", "k", "v"})
    in[name] = in[name].slice(1, 0, 1).expand_as(in[name]).contiguous();
  const at::Tensor y = out("urpe", in, "parallel");
  EXPECT_GT(relative_error(y.select(1, 0), y.select(1, 20)), 1e-2);
  in["c"] = at::ones_like(in["c"]);
  const at::Tensor same = out("urpe", in, "parallel");
  EXPECT_LE(relative_error(same, same.slice(1, 0, 1).expand_as(same)), 2e-6);
}

TEST(Urpe, PairsOutsideTheTableAreRefused) {
  NamedTensors in = inputs(4);
  in["c"] = at::ones({4, 2 * kT - 3}), in.erase("b");
  for (const char* form : {"naive", "parallel"})
    EXPECT_THROW(out("urpe", in, form), std::exception);
}

TEST(Urpe, BiasesByDistanceAreInTheSoftmax) {
  NamedTensors in = inputs(5);
  const at::Tensor q = in["q"].to(at::kDouble).transpose(1, 2);
  const at::Tensor k = in["k"].to(at::kDouble).repeat_interleave(2, 2).transpose(1, 2);
  const at::Tensor v = in["v"].to(at::kDouble).repeat_interleave(2, 2).transpose(1, 2);
  const at::Tensor i = at::arange(kT);
  const at::Tensor entry = i.unsqueeze(0).sub(i.unsqueeze(1)).add(kT - 1).flatten();
  const auto by_distance = [&](const char* name) {
    return in[name].to(at::kDouble).index_select(1, entry).view({1, 4, kT, kT});
  };
  const at::Tensor x = at::matmul(q, k.transpose(2, 3)).div(4.0).add(by_distance("b"));
  const at::Tensor p = x.softmax(-1);
  const at::Tensor want = at::matmul(p.mul(by_distance("c")), v).transpose(1, 2);
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(out("urpe", in, form), want), 2e-6) << form;
  }
}

// Any number of layers on equal tokens: all rows equal with C = 1, not with another C.
TEST(Urpe, LayersOnEqualTokensShowPositionsOnlyThroughC) {
  for (const int buckets : {0, 8}) {
    LayerConfig config;
    config.hidden = 32, config.heads = 4;
    config.options = {{"reach", 64}, {"buckets", buckets}, {"max_distance", 20}};
    at::manual_seed(6);
    std::vector<std::unique_ptr<Layer>> layers;
    for (int n = 0; n < 3; ++n) {
      layers.push_back(make_layer("urpe", config));
      for (auto& [name, t] : layers[n]->parameters()) t.mul_(6.0);
      layers[n]->parameters().at("b").normal_();
      layers[n]->parameters().at("c").fill_(1.0);
    }
    const auto run = [&] {
      at::Tensor x = at::ones({1, 40, 32});
      for (const auto& layer : layers) {
        Call call;
        call.pattern = Pattern::kNoncausalSelf;
        x = layer->add_to(x, x, call);
      }
      return relative_error(x, x.slice(1, 0, 1).expand_as(x));
    };
    EXPECT_LE(run(), 2e-6) << buckets;
    layers[0]->parameters().at("c").uniform_();
    EXPECT_GT(run(), 1e-3) << buckets;
    if (buckets > 0) continue;
    Call call;
    EXPECT_THROW(layers[0]->forward(at::ones({1, 65, 32}), call), UsageError);
  }
}

TEST(Urpe, TheLayerDecodesOverRowsOfEitherLayout) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4, config.kv_heads = 2;
  config.options = {{"reach", 50}, {"window", 9}};
  at::manual_seed(7);
  const auto layer = make_layer("urpe", config);
  for (auto& [name, t] : layer->parameters()) t.add_(at::randn(t.sizes()).mul(0.5));
  const at::Tensor x = at::randn({1, 40, 32});
  Call whole;
  const at::Tensor want = layer->forward(x, whole);
  for (const bool grouped : {false, true}) {
    StateSpec spec = layer->state();
    std::get<RowsPart>(spec.parts[0]).grouped = grouped;
    State state(spec);
    std::vector<at::Tensor> parts;
    for (const auto& [begin, end] : {std::pair{0, 17}, {17, 18}, {18, 39}, {39, 40}}) {
      Call call;
      call.states = {&state};
      parts.push_back(layer->forward(x.slice(1, begin, end), call));
    }
    EXPECT_LE(relative_error(at::cat(parts, 1), want), 5e-6) << grouped;
    Call call;
    call.states = {&state};
    EXPECT_THROW(layer->forward(at::randn({1, 11, 32}), call), UsageError);
  }
}

}  // namespace urpe_test
}  // namespace heed::mixer
