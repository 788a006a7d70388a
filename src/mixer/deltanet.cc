// DeltaNet: writes the error v - k S instead of v, so that a key can be overwritten.
// Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv
// 2406.06484 (recurrence: eq. 3; chunked form: eqs. 8-11).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// y = RMSNorm_head(o) Wo; q, k = l2norm(silu(conv(x W))), v = silu(conv(x Wv)), beta = sigmoid(x
// Wb).
class DeltaNetLayer : public RecurrentLayer {
 public:
  explicit DeltaNetLayer(const LayerConfig& config) : RecurrentLayer("deltanet", true) {
    LayerOptions options("deltanet", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 1.0);
    const int64_t value_dim = options.head_width("expand_v", 1.0);
    const int64_t taps = options.integer("conv", 4);
    beta_range_ = options.flag("negative_eigenvalues", false) ? 2.0 : 1.0;
    const bool gated = options.flag("output_gate", false);
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim, hv = heads_ * value_dim;
    projections(qkv_, hk, hk, hv, c);
    params_.matrix(beta_, "b_proj.weight", heads_, c);
    convolutions(qkv_, taps);
    params_.tensor(norm_, "o_norm.weight", at::ones({value_dim}, init_options()));
    params_.matrix(out_, "o_proj.weight", c, hv);
    if (gated) params_.matrix(gate_, "g_proj.weight", hv, c);
    state_ = fixed("state", {1, heads_, key_dim, value_dim});
    scan_.scale = 1.0 / std::sqrt(static_cast<double>(key_dim));
  }

  Traits traits() const override { return recurrent_traits(false); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const at::Tensor q = l2_norm(pass.tokens(qkv_.q, x, heads_), 1e-6);
    const at::Tensor k = l2_norm(pass.tokens(qkv_.k, x, heads_), 1e-6);
    const at::Tensor v = pass.tokens(qkv_.v, x, heads_);
    op::ScanInputs in;
    in.beta = at::sigmoid(linear(x, beta_).to(at::kFloat)).mul(beta_range_);
    const at::Tensor o = pass.scan(state_, q, k, v, in, scan_);
    at::Tensor y = rms_norm(o, norm_, 1e-6).flatten(2);
    if (gate_.defined()) y = y.mul(at::silu(linear(x, gate_)));
    return linear(y, out_);
  }

 private:
  int64_t heads_;
  double beta_range_;
  QkvTokens qkv_;
  Weight beta_, gate_, out_;  // gate: undefined without output_gate
  at::Tensor norm_;
  size_t state_;
  op::ScanOptions scan_;
};

}  // namespace

void register_deltanet(Registry& registry) {
  Mechanism m;
  m.card.id = "deltanet";
  m.card.equations = "S_t = S_{t-1} + beta_t k_t^T (v_t - k_t S_{t-1})\nout_t = scale q_t S_t";
  m.card.state_note = "and 3 inputs of each convolution";
  set_scan_row(m.card, {gate("beta", "B,T,H", Sample::kGate)}, Sample::kUnit);
  m.traits = recurrent_traits(false);
  m.core = [](const CoreCall& call) { return scan_core(call); };
  m.layer = [](const LayerConfig& config) { return std::make_unique<DeltaNetLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
