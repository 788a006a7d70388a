// Gated DeltaProduct: n delta steps a token, so that a transition is a product of n
// Householder-like factors; the state decays once a token. Siems et al., "DeltaProduct", arXiv
// 2502.10297 (section 3).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// x [B,T,...] at step `place` of each token's n, `fill` in the others: [B,nT,...].
at::Tensor spread_steps(const at::Tensor& x, int64_t n, int64_t place) {
  at::Tensor zeros = at::zeros_like(x).unsqueeze(2);
  std::vector<at::Tensor> steps(static_cast<size_t>(n), zeros);
  steps[static_cast<size_t>(place)] = x.unsqueeze(2);
  return at::cat(steps, 2).flatten(1, 2);
}

// The delta steps are tokens of one longer gated delta rule: the first of a token's n decays, the
// last is read.
NamedTensors gated_deltaproduct_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), decay = call.get("log_decay");
  const int64_t n = std::max<int64_t>(call.size("T") > 0 ? call.size("n") : 1, 1);
  ScanParts parts;
  parts.q = spread_steps(q, n, n - 1);
  parts.scale = 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(q.size(3), 1)));
  if (decay.defined()) parts.in.log_decay = spread_steps(decay, n, 0);
  if (call.get("cu_seqlens").defined()) parts.in.cu_seqlens = call.get("cu_seqlens").mul(n);
  NamedTensors result = scan_core(call, parts);
  const at::Tensor out = result["out"];
  result["out"] = out.unflatten(1, {q.size(1), n}).select(2, n - 1);
  return result;
}

// Gated DeltaNet's layer with keys, values and betas of n steps a token.
class GatedDeltaProductLayer : public RecurrentLayer {
 public:
  explicit GatedDeltaProductLayer(const LayerConfig& config)
      : RecurrentLayer("gated-deltaproduct", true) {
    LayerOptions options("gated-deltaproduct", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 0.75);
    const int64_t value_dim = options.head_width("expand_v", 1.5);
    const int64_t taps = options.integer("conv", 4);
    steps_ = options.integer("steps", 2);
    beta_range_ = options.flag("negative_eigenvalues", true) ? 2.0 : 1.0;
    const bool decays = options.flag("decay", true);
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim, hv = heads_ * value_dim;
    projections(qkv_, hk, steps_ * hk, steps_ * hv, c);
    convolutions(qkv_, taps);
    params_.matrix(beta_, "b_proj.weight", steps_ * heads_, c);
    if (decays) {
      params_.matrix(step_, "a_proj.weight", heads_, c);
      params_.tensor(a_log_, "A_log",
                     at::log(at::empty({heads_}, init_options()).uniform_(1e-3, 16.0)));
      params_.tensor(dt_bias_, "dt_bias", init_dt_bias(heads_));
    }
    params_.matrix(gate_, "g_proj.weight", hv, c);
    params_.tensor(norm_, "o_norm.weight", at::ones({value_dim}, init_options()));
    params_.matrix(out_, "o_proj.weight", c, hv);
    state_ = fixed("state", {1, heads_, key_dim, value_dim});
    token_flops_ = (steps_ - 1) * scan_flops(1, heads_, key_dim, value_dim, true);
    scan_.scale = 1.0 / std::sqrt(static_cast<double>(key_dim));
  }

  Traits traits() const override { return recurrent_traits(true); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const int64_t batch = x.size(0), tokens = x.size(1);
    const auto by_step = [&](const at::Tensor& y) {  // [B,T,n H,D] -> [B,nT,H,D]
      return y.reshape({batch, tokens * steps_, heads_, y.size(3)});
    };
    const at::Tensor q = l2_norm(pass.tokens(qkv_.q, x, heads_), 1e-6);
    const at::Tensor k = l2_norm(by_step(pass.tokens(qkv_.k, x, steps_ * heads_)), 1e-6);
    const at::Tensor v = by_step(pass.tokens(qkv_.v, x, steps_ * heads_));
    op::ScanInputs in;
    in.beta = at::sigmoid(linear(x, beta_).to(at::kFloat))
                  .mul(beta_range_)
                  .reshape({batch, tokens * steps_, heads_});
    if (step_.defined()) {
      const at::Tensor dt =
          at::softplus(linear(x, step_).to(at::kFloat).add(dt_bias_.to(at::kFloat)));
      in.log_decay = spread_steps(dt.mul(at::exp(a_log_.to(at::kFloat)).neg()), steps_, 0);
    }
    const at::Tensor read = pass.scan(state_, spread_steps(q, steps_, steps_ - 1), k, v, in, scan_);
    const at::Tensor o = read.unflatten(1, {tokens, steps_}).select(2, steps_ - 1);
    const at::Tensor gate = at::silu(linear(x, gate_));
    return linear(rms_norm(o, norm_, 1e-5).flatten(2).mul(gate), out_);
  }

 private:
  int64_t heads_, steps_;
  double beta_range_;
  QkvTokens qkv_;
  Weight gate_, step_, beta_, out_;  // step_: undefined without decay
  at::Tensor a_log_, dt_bias_, norm_;
  size_t state_;
  op::ScanOptions scan_;
};

}  // namespace

void register_gated_deltaproduct(Registry& registry) {
  Mechanism m;
  m.card.id = "gated-deltaproduct";
  m.card.equations =
      "S_0' = a_t S_{t-1}\n"
      "S_i' = S_{i-1}' + beta_ti k_ti^T (v_ti - k_ti S_{i-1}'),  i = 1 .. n,  S_t = S_n'\n"
      "out_t = scale q_t S_t";
  set_scan_row(
      m.card,
      {gate("beta", "B,n T,H", Sample::kGate), gate("log_decay", "B,T,H", Sample::kLogDecay, true)},
      Sample::kUnit);
  for (TensorSpec& spec : m.card.apply.inputs) {
    if (spec.name == "k") spec.shape = "B,n T,H,K";
    if (spec.name == "v") spec.shape = "B,n T,H,V";
  }
  m.card.tests.sizes.emplace("n", 2);
  m.card.tests.tries = {{{}, {{"n", 3}}, {}}, {{}, {{"n", 1}}, {}}};
  m.traits = recurrent_traits(true);
  m.core = gated_deltaproduct_core;
  m.layer = [](const LayerConfig& config) {
    return std::make_unique<GatedDeltaProductLayer>(config);
  };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
