// FoX: without forgetting it is softmax attention; a constant gate is ALiBi; the far past goes.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/registry.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace fox_test {

using testing::relative_error;

NamedTensors inputs(int64_t tokens, uint64_t seed) {
  Try one;
  one.sizes = {{"B", 2}, {"H", 4}, {"J", 2}, {"K", 16}, {"V", 12}};
  return testing::make_inputs(find_mechanism("fox"), one, tokens, seed);
}

at::Tensor out(const char* id, const NamedTensors& in, const char* form,
               const SettingList& settings = {}) {
  return testing::run(find_mechanism(id), in, form, settings).at("out");
}

TEST(Fox, WithoutForgettingIsSoftmaxAttention) {
  NamedTensors in = inputs(70, 1);
  in["log_decay"] = at::zeros_like(in["log_decay"]);
  const NamedTensors plain = {{"q", in["q"]}, {"k", in["k"]}, {"v", in["v"]}};
  const at::Tensor want = out("softmax", plain, "parallel", {{"causal", "true"}});
  for (const char* form : {"naive", "chunked"}) {
    EXPECT_LE(relative_error(out("fox", in, form), want), 2e-6) << form;
  }
}

TEST(Fox, ConstantForgettingIsAlibi) {
  NamedTensors in = inputs(600, 2);  // more than one run of queries
  const at::Tensor slopes = at::tensor({0.5, 0.25, 0.1, 0.01}, at::kFloat);
  in["log_decay"] = slopes.neg().expand({2, 600, 4}).contiguous();
  const NamedTensors alibi = {
      {"q", in["q"]}, {"k", in["k"]}, {"v", in["v"]}, {"alibi_slopes", slopes}};
  const at::Tensor want = out("softmax", alibi, "parallel", {{"causal", "true"}});
  EXPECT_LE(relative_error(out("fox", in, "naive"), want), 4e-6);
  EXPECT_LE(relative_error(out("fox", in, "chunked"), want), 1e-5);
}

TEST(Fox, StrongForgettingKeepsTheOwnTokenOnly) {
  NamedTensors in = inputs(40, 3);
  in["log_decay"] = at::full_like(in["log_decay"], -200.0);
  const at::Tensor own = in["v"].repeat_interleave(2, 2);
  for (const char* form : {"naive", "chunked"}) {
    EXPECT_LE(relative_error(out("fox", in, form), own), 1e-6) << form;
  }
}

TEST(Fox, GatesThatAreNotFiniteAreRefused) {
  NamedTensors in = inputs(5, 4);
  in["log_decay"].fill_(-INFINITY);
  EXPECT_THROW(out("fox", in, "naive"), std::exception);
}

// Sums that begin anew every few tokens change nothing, in a fork neither; however rows are laid
// out.
TEST(Fox, TheLayersSumsBeginAnew) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4, config.kv_heads = 2;
  at::manual_seed(5);
  const auto layer = make_layer("fox", config);
  layer->parameters().at("f_proj.bias").copy_(at::tensor({-6.0, -0.1, 3.0, -20.0}));
  for (auto& [name, t] : layer->parameters()) {
    if (t.dim() == 2) t.mul_(6.0);
  }
  const at::Tensor x = at::randn({1, 90, 32});
  const auto run = [&](State& state, int64_t begin, int64_t end, int64_t step) {
    std::vector<at::Tensor> parts;
    for (; begin < end; begin += step) {
      Call call;
      call.states = {&state};
      parts.push_back(layer->forward(x.slice(1, begin, std::min(begin + step, end)), call));
    }
    return at::cat(parts, 1);
  };
  Call call;
  const at::Tensor want = layer->forward(x, call);
  for (const bool grouped : {false, true}) {
    StateSpec spec = layer->state();
    std::get<RowsPart>(spec.parts[0]).grouped = grouped;
    State state(spec);
    EXPECT_LE(relative_error(run(state, 0, 70, 7), want.slice(1, 0, 70)), 5e-6) << grouped;
    const auto fork = state.fork();
    EXPECT_LE(relative_error(run(state, 70, 90, 1), want.slice(1, 70)), 5e-6) << grouped;
    EXPECT_LE(relative_error(run(*fork, 70, 90, 4), want.slice(1, 70)), 5e-6) << grouped;
    EXPECT_LE(state.tensor(1).abs().max().item<double>(), 64 + 40) << "a sum that only grows";
  }
}

}  // namespace fox_test
}  // namespace heed::mixer
