// Mamba: what its entry says must hold, besides the properties of every mixer.
#include <gtest/gtest.h>

#include <chrono>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace mamba_test {

using testing::relative_error;

const std::vector<std::string> kForms = {"naive", "chunked", "recurrent"};

NamedTensors run(const NamedTensors& in, const std::string& form, const char* softplus = "false",
                 at::ScalarType dtype = at::kFloat) {
  return testing::run(find_mechanism("mamba"), in, form, {{"dt_softplus", softplus}}, dtype);
}

NamedTensors inputs(int64_t tokens, uint64_t seed, bool optional = false) {
  Try one;
  one.sizes = {{"B", 2}, {"E", 6}, {"N", 5}, {"G", 2}};
  testing::SampleOptions options;
  options.optional = optional;
  return testing::make_inputs(find_mechanism("mamba"), one, tokens, seed, options);
}

// N = 1, A = -1, dt = softplus(z): h_t = (1 - sigmoid(z_t)) h_{t-1} + ..., the gated RNN.
TEST(Mamba, IsAGatedRnn) {
  NamedTensors in;
  at::manual_seed(1);
  const at::Tensor z = at::randn({1, 30, 4}), x = at::randn({1, 30, 4});
  in = {{"x", x},
        {"dt", z},
        {"A", at::full({4, 1}, -1.0)},
        {"B", at::ones({1, 30, 1})},
        {"C", at::ones({1, 30, 1})}};
  at::Tensor h = at::zeros({1, 4}, at::kDouble);
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < 30; ++t) {
    const at::Tensor zt = z.select(1, t).to(at::kDouble);
    h = at::sigmoid(zt).neg().add(1).mul(h).add(at::softplus(zt).mul(x.select(1, t)));
    rows.push_back(h);
  }
  for (const std::string& form : kForms) {
    EXPECT_LE(relative_error(run(in, form, "true").at("out"), at::stack(rows, 1)), 2e-6) << form;
  }
}

TEST(Mamba, StepsOfNoLengthKeepTheState) {
  NamedTensors in = inputs(20, 2, true);
  in["dt"] = at::zeros_like(in.at("dt"));
  in.erase("dt_bias");
  for (const std::string& form : kForms) {
    EXPECT_TRUE(run(in, form).at("final_state").equal(in.at("initial_state"))) << form;
  }
}

// dt, B, C constant in t: the causal convolution with kernel C exp(k dt A) dt B.
TEST(Mamba, ConstantInTimeIsAConvolution) {
  at::manual_seed(3);
  const int64_t tokens = 40, e = 5, n = 3;
  const at::Tensor x = at::randn({1, tokens, e}), dt = at::rand({e}).mul(0.3);
  const at::Tensor A = at::randn({e, n}).exp().neg(), B = at::randn({n}), C = at::randn({n});
  const NamedTensors in = {{"x", x},
                           {"dt", dt.expand({1, tokens, e}).contiguous()},
                           {"A", A},
                           {"B", B.expand({1, tokens, n}).contiguous()},
                           {"C", C.expand({1, tokens, n}).contiguous()}};
  const at::Tensor step = dt.to(at::kDouble).unsqueeze(-1);
  at::Tensor expected = at::zeros({1, tokens, e}, at::kDouble);
  for (int64_t k = 0; k < tokens; ++k) {
    const at::Tensor weight = at::exp(step.mul(A).mul(k)).mul(B.mul(C)).sum(-1).mul(dt);
    expected.slice(1, k).add_(x.slice(1, 0, tokens - k).mul(weight));
  }
  for (const std::string& form : kForms) {
    EXPECT_LE(relative_error(run(in, form).at("out"), expected), 2e-6) << form;
  }
}

TEST(Mamba, ChannelsOfAGroupShareBAndC) {
  NamedTensors in = inputs(20, 4), grouped = in;
  in["B"] = in.at("B").dim() == 3 ? in.at("B") : in.at("B").select(2, 0).contiguous();
  in["C"] = in.at("C").dim() == 3 ? in.at("C") : in.at("C").select(2, 0).contiguous();
  for (const char* name : {"B", "C"}) {
    grouped[name] = in.at(name).unsqueeze(2).expand({2, 20, 3, 5}).contiguous();
  }
  for (const std::string& form : kForms) {
    EXPECT_TRUE(run(in, form).at("out").equal(run(grouped, form).at("out"))) << form;
  }
}

TEST(Mamba, LongSequencesAreFastAndExact) {
  at::manual_seed(5);
  const int64_t tokens = 4096, e = 64, n = 16;
  const NamedTensors in = {{"x", at::randn({1, tokens, e})},
                           {"dt", at::rand({1, tokens, e}).mul(0.1)},
                           {"A", at::arange(1, n + 1, at::kFloat).neg().repeat({e, 1})},
                           {"B", at::randn({1, tokens, n})},
                           {"C", at::randn({1, tokens, n})}};
  const auto time = [&](const char* form, at::Tensor* out) {
    const auto start = std::chrono::steady_clock::now();
    *out = run(in, form).at("out");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  at::Tensor naive, fast;
  time("chunked", &fast);
  const double seconds = time("chunked", &fast);
  EXPECT_LT(3 * seconds, time("naive", &naive));
  EXPECT_LE(relative_error(fast, run(in, "naive", "false", at::kDouble).at("out")), 2e-6);
}

// The layer is its equation, token by token in float64, with the names and shapes of transformers.
TEST(Mamba, LayerIsItsEquation) {
  at::manual_seed(6);
  LayerConfig config;
  config.hidden = 8;
  config.heads = 1;
  config.options = {{"state", 3}};
  const auto layer = make_layer("mamba", config);
  const std::map<std::string, std::vector<int64_t>> shapes = {
      {"in_proj.weight", {32, 8}}, {"conv1d.weight", {16, 1, 4}},
      {"conv1d.bias", {16}},       {"x_proj.weight", {7, 16}},
      {"dt_proj.weight", {16, 1}}, {"dt_proj.bias", {16}},
      {"A_log", {16, 3}},          {"D", {16}},
      {"out_proj.weight", {8, 16}}};
  EXPECT_EQ(layer->parameters().size(), shapes.size());
  for (const auto& [name, shape] : shapes) {
    EXPECT_EQ(layer->parameters().at(name).sizes().vec(), shape) << name;
  }
  EXPECT_LE(relative_error(layer->parameters().at("A_log").exp(),
                           at::arange(1, 4, at::kFloat).expand({16, 3})),
            1e-6);
  for (auto& [name, t] : layer->parameters()) t.add_(at::randn(t.sizes()).mul(0.3));
  const auto p = [&](const char* name) { return layer->parameters().at(name).to(at::kDouble); };
  const at::Tensor input = at::randn({1, 13, 8});
  const auto xz = at::matmul(input.to(at::kDouble), p("in_proj.weight").t()).chunk(2, -1);
  const at::Tensor padded = at::constant_pad_nd(xz[0], {0, 0, 3, 0});
  at::Tensor h = at::zeros({16, 3}, at::kDouble);
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < 13; ++t) {
    const at::Tensor taps = padded[0].slice(0, t, t + 4).t();
    const at::Tensor x =
        at::silu(taps.mul(p("conv1d.weight").squeeze(1)).sum(-1).add(p("conv1d.bias")));
    const auto maps = at::mv(p("x_proj.weight"), x).split_with_sizes({1, 3, 3}, 0);
    const at::Tensor dt = at::softplus(at::mv(p("dt_proj.weight"), maps[0]).add(p("dt_proj.bias")));
    const at::Tensor a = dt.unsqueeze(-1).mul(p("A_log").exp().neg()).exp();
    h = a.mul(h).add(dt.mul(x).unsqueeze(-1).mul(maps[1]));
    const at::Tensor y = at::mv(h, maps[2]).add(p("D").mul(x)).mul(at::silu(xz[1][0][t]));
    rows.push_back(at::mv(p("out_proj.weight"), y));
  }
  Call call;
  EXPECT_LE(relative_error(layer->forward(input, call)[0], at::stack(rows)), 5e-6);
}

}  // namespace mamba_test
}  // namespace heed::mixer
