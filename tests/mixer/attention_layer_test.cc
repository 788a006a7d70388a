// The layer around attention: patterns, grouped heads, rotation, programs, and a mechanism made of
// its four hooks.
#include "mixer/common/attention_layer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace attention_layer_test {

using testing::relative_error;

constexpr int64_t kHidden = 32;

LayerConfig config() {
  LayerConfig c;
  c.hidden = kHidden;
  c.heads = 4;
  c.kv_heads = 2;
  return c;
}

at::Tensor run(Layer& layer, const at::Tensor& x, State* state = nullptr) {
  Call call;
  if (state) call.states = {state};
  return layer.forward(x, call);
}

// Chunks and steps over a state equal one pass.
void expect_any_split(Layer& layer, const at::Tensor& x, double bound) {
  const at::Tensor whole = run(layer, x);
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{40}, {1, 20, 0, 19}, {38, 1, 1}}) {
    const auto state = layer.make_state();
    std::vector<at::Tensor> parts;
    int64_t begin = 0;
    for (const int64_t size : sizes) {
      parts.push_back(run(layer, x.slice(1, begin, begin + size), state.get()));
      begin += size;
    }
    EXPECT_LE(relative_error(at::cat(parts, 1), whole), bound);
  }
}

// softmax(q k^T / sqrt(D) + mask) v with plain tensor operations; x and context [B,*,C].
at::Tensor naive(Layer& layer, const at::Tensor& x, const at::Tensor& context, bool causal) {
  const auto heads = [&](const char* name, const at::Tensor& from) {
    return at::matmul(from.to(at::kDouble), layer.parameters().at(name).to(at::kDouble).t())
        .unflatten(2, {-1, 8})
        .transpose(1, 2);
  };
  const at::Tensor q = heads("q_proj.weight", x);
  const at::Tensor k = heads("k_proj.weight", context).repeat_interleave(2, 1);
  const at::Tensor v = heads("v_proj.weight", context).repeat_interleave(2, 1);
  at::Tensor logits = at::matmul(q, k.transpose(2, 3)) / std::sqrt(8.0);
  if (causal) {
    const int64_t t = x.size(1), s = context.size(1);
    logits = logits.masked_fill(at::ones({t, s}, at::kBool).triu(s - t + 1), -INFINITY);
  }
  const at::Tensor o = at::matmul(at::softmax(logits, -1), v).transpose(1, 2).flatten(2);
  return at::matmul(o, layer.parameters().at("o_proj.weight").to(at::kDouble).t());
}

TEST(AttentionLayer, HasEveryPattern) {
  at::manual_seed(1);
  const auto layer = make_layer("softmax", config());
  for (auto& [name, t] : layer->parameters()) t.mul_(20);
  const at::Tensor x = at::randn({2, 9, kHidden}), other = at::randn({2, 14, kHidden});
  for (const bool grad : {false, true}) {
    const at::AutoGradMode mode(grad);
    for (const auto pattern : {Pattern::kCausalSelf, Pattern::kNoncausalSelf, Pattern::kCausalCross,
                               Pattern::kNoncausalCross}) {
      const bool cross = pattern == Pattern::kCausalCross || pattern == Pattern::kNoncausalCross;
      Call call;
      call.pattern = pattern;
      if (cross) call.context = other;
      const bool causal = pattern == Pattern::kCausalSelf || pattern == Pattern::kCausalCross;
      EXPECT_LE(
          relative_error(layer->forward(x, call), naive(*layer, x, cross ? other : x, causal)),
          1e-5)
          << static_cast<int>(pattern);
    }
  }
  Call call;
  call.pattern = Pattern::kNoncausalCross;
  EXPECT_THROW(layer->forward(x, call), UsageError);  // no context
  call.pattern = Pattern::kNoncausalSelf;
  const auto a = layer->make_state(), b = layer->make_state();
  call.states = {a.get(), b.get()};
  EXPECT_THROW(layer->forward(x, call), UsageError);
}

TEST(AttentionLayer, RotationWindowsAndNormsOfHeadsGoAnyWay) {
  LayerConfig c = config();
  c.options = {{"rope_theta", 100.0}, {"window", 7}, {"qk_norm", true}};
  c.qkv_bias = c.out_bias = true;
  const auto layer = make_layer("softmax", c);
  for (auto& [name, t] : layer->parameters()) t.add_(at::randn(t.sizes()).mul(0.3));
  const at::Tensor x = at::randn({1, 40, kHidden});
  expect_any_split(*layer, x, 5e-6);
  at::Tensor fused;
  {
    const at::NoGradGuard no_grad;
    fused = run(*layer, x);
  }
  EXPECT_LE(relative_error(fused, run(*layer, x)), 5e-6);
  EXPECT_EQ(layer->heads()->window, 7);
  EXPECT_FALSE(layer->make_state()->spec().dense_prefill());
  // Positions that are given turn q and k like those that are counted.
  Call call;
  call.positions = at::arange(100, 140).unsqueeze(0);
  EXPECT_LE(relative_error(layer->forward(x, call), run(*layer, x)), 1e-4) << "relative positions";
  call.positions = at::arange(40).mul(3).unsqueeze(0);
  EXPECT_GT(relative_error(layer->forward(x, call), run(*layer, x)), 1e-2);
  c.options["kv_heads"] = 3;
  EXPECT_THROW(make_layer("softmax", c), UsageError);
}

TEST(AttentionLayer, SigmoidDecodesAsItRuns) {
  LayerConfig c = config();
  c.options = {{"bias", -2.0}};
  const auto layer = make_layer("sigmoid-attention", c);
  for (auto& [name, t] : layer->parameters()) t.mul_(10);
  const at::Tensor x = at::randn({1, 40, kHidden});
  expect_any_split(*layer, x, 5e-6);
  c.options["bias"] = -9.0;
  at::manual_seed(2);
  const auto other = make_layer("sigmoid-attention", c);
  for (size_t i = 0; i < layer->parameters().size(); ++i) {
    (other->parameters().begin() + static_cast<int64_t>(i))
        ->value.copy_((layer->parameters().begin() + static_cast<int64_t>(i))->value);
  }
  EXPECT_GT(relative_error(run(*other, x), run(*layer, x)), 0.5) << "the bias weighs";
}

// Every hook: queries scaled before the rotation, a decay summed over all tokens before as a bias
// of each key (Forgetting Transformer, arXiv 2503.02130), a soft cap, a gate behind, a loss of its
// own.
class Hooked : public AttentionLayer {
 public:
  explicit Hooked(const LayerConfig& config) : AttentionLayer("hooked", config) {
    options_.close();
    params_.matrix(decay_, "f_proj.weight", 4, kHidden);
    params_.matrix(gate_, "gate.weight", 32, kHidden);
    rewrites_heads_ = true;
    columns_ = {{"bias", 2}};
  }
  StateSpec state(const StateRequest& request) const override {
    StateSpec spec = AttentionLayer::state(request);
    spec.parts.push_back(FixedPart{"sum", {4}});
    return spec;
  }

 protected:
  void before_rope(const at::Tensor& x, Heads& h) override {
    h.q = h.q * 3;
    const at::Tensor f = at::log_sigmoid(linear(x, decay_).to(at::kFloat)).flatten(0, 1);
    std::vector<at::Tensor> sums;
    for (size_t s = 0; s + 1 < h.layout.bounds.size(); ++s) {
      at::Tensor sum = f.slice(0, h.layout.bounds[s], h.layout.bounds[s + 1]).cumsum(0);
      if (!h.call.states.empty()) {
        at::Tensor& before = h.call.states[s]->tensor(1);
        sum = sum + before;
        if (sum.size(0) > 0) before.copy_(sum[-1]);
      }
      sums.push_back(sum);
    }
    h.key_bias = at::cat(sums).neg().unflatten(1, {2, 2});
  }
  op::AttendOptions options(const at::Tensor& x, const Heads& h) const override {
    op::AttendOptions options = AttentionLayer::options(x, h);
    options.soft_cap = 4;
    return options;
  }
  at::Tensor after(const at::Tensor& x, const at::Tensor& o, const Heads& h) override {
    if (h.call.aux) h.call.aux->add("hooked", o.square().mean());
    return o * at::sigmoid(linear(x, gate_)).flatten(0, 1).view_as(o);
  }

 private:
  Weight decay_, gate_;
};

TEST(AttentionLayer, FourHooksMakeAMechanism) {
  at::manual_seed(5);
  LayerConfig c = config();
  c.options = {{"rope_theta", 1000.0}};
  Hooked layer(c);
  for (auto& [name, t] : layer.parameters()) t.mul_(8);
  const at::Tensor x = at::randn({1, 40, kHidden});
  expect_any_split(layer, x, 1e-5);
  // Packs and batches are separate sequences.
  Call pack;
  pack.cu_seqlens = at::tensor({0, 13, 40}, at::kLong);
  const at::Tensor packed = layer.forward(x, pack);
  EXPECT_LE(relative_error(packed.slice(1, 13), run(layer, x.slice(1, 13))), 1e-5);
  // The bias hides what lies far back: with a strong decay a token sees itself alone.
  const at::Tensor plain = run(layer, x);
  layer.parameters().at("f_proj.weight").mul_(-50);
  EXPECT_GT(relative_error(run(layer, x), plain), 1e-2);
  Aux aux;
  Call call;
  call.aux = &aux;
  layer.forward(x, call);
  layer.forward(x, call);
  ASSERT_EQ(aux.losses().count("hooked"), 1U);
  EXPECT_GT(aux.losses().at("hooked").item<float>(), 0);
  NamedTensors saved;
  const auto state = layer.make_state();
  run(layer, x, state.get());
  EXPECT_EQ(state->bytes(), layer.state_bytes(40));
  state->save(saved, "");
  EXPECT_EQ(saved.at("h0.bias").sizes(), (std::vector<int64_t>{40, 2}));
  EXPECT_EQ(saved.at("sum").size(0), 4);
}

}  // namespace attention_layer_test
}  // namespace heed::mixer
