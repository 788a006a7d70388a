// Gated DeltaNet: the delta rule on a state that first decays.
// Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", arXiv
// 2412.06464 (recurrence: eq. 10; layer: section 3.3).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// y = (RMSNorm_head(o) . silu(x Wg)) Wo; q, k, v as in DeltaNet; log a = -exp(A_log) softplus(x Wa
// + dt_bias).
class GatedDeltaNetLayer : public RecurrentLayer {
 public:
  explicit GatedDeltaNetLayer(const LayerConfig& config) : RecurrentLayer("gated-deltanet", true) {
    LayerOptions options("gated-deltanet", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 0.75);
    const int64_t value_dim = options.head_width("expand_v", 1.5);
    const int64_t taps = options.integer("conv", 4);
    beta_range_ = options.flag("negative_eigenvalues", false) ? 2.0 : 1.0;
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim, hv = heads_ * value_dim;
    projections(qkv_, hk, hk, hv, c);
    params_.matrix(gate_, "g_proj.weight", hv, c);
    params_.matrix(step_, "a_proj.weight", heads_, c);
    params_.matrix(beta_, "b_proj.weight", heads_, c);
    params_.tensor(a_log_, "A_log",
                   at::log(at::empty({heads_}, init_options()).uniform_(1e-3, 16.0)));
    params_.tensor(dt_bias_, "dt_bias", init_dt_bias(heads_));
    convolutions(qkv_, taps);
    params_.tensor(norm_, "o_norm.weight", at::ones({value_dim}, init_options()));
    params_.matrix(out_, "o_proj.weight", c, hv);
    state_ = fixed("state", {1, heads_, key_dim, value_dim});
    scan_.scale = 1.0 / std::sqrt(static_cast<double>(key_dim));
  }

  Traits traits() const override { return recurrent_traits(true); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const at::Tensor q = l2_norm(pass.tokens(qkv_.q, x, heads_), 1e-6);
    const at::Tensor k = l2_norm(pass.tokens(qkv_.k, x, heads_), 1e-6);
    const at::Tensor v = pass.tokens(qkv_.v, x, heads_);
    op::ScanInputs in;
    in.beta = at::sigmoid(linear(x, beta_).to(at::kFloat)).mul(beta_range_);
    const at::Tensor dt =
        at::softplus(linear(x, step_).to(at::kFloat).add(dt_bias_.to(at::kFloat)));
    in.log_decay = dt.mul(at::exp(a_log_.to(at::kFloat)).neg());
    const at::Tensor o = pass.scan(state_, q, k, v, in, scan_);
    const at::Tensor gate = at::silu(linear(x, gate_));
    return linear(rms_norm(o, norm_, 1e-5).flatten(2).mul(gate), out_);
  }

 private:
  int64_t heads_;
  double beta_range_;
  QkvTokens qkv_;
  Weight gate_, step_, beta_, out_;
  at::Tensor a_log_, dt_bias_, norm_;
  size_t state_;
  op::ScanOptions scan_;
};

}  // namespace

void register_gated_deltanet(Registry& registry) {
  Mechanism m;
  m.card.id = "gated-deltanet";
  m.card.equations =
      "S' = a_t S_{t-1}\nS_t = S' + beta_t k_t^T (v_t - k_t S')\nout_t = scale q_t S_t";
  m.card.state_note = "and 3 inputs of each convolution";
  set_scan_row(
      m.card, {gate("beta", "B,T,H", Sample::kGate), gate("log_decay", "B,T,H", Sample::kLogDecay)},
      Sample::kUnit);
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) { return scan_core(call); };
  m.layer = [](const LayerConfig& config) { return std::make_unique<GatedDeltaNetLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
