// Kimi Delta Attention: the gated delta rule with a decay per key channel; the correction reads the
// state after its decay. Kimi Team, "Kimi Linear", arXiv 2510.26692 (eq. 1).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// y = (RMSNorm_head(o) . sigmoid(x Wg1 Wg2 + b)) Wo; q, k = l2norm(silu(conv(x W))), v =
// silu(conv(x Wv)), beta = sigmoid(x Wb), f = x Wf1 Wf2 + dt_bias, log a = -exp(A_log) softplus(f),
// or bounded: -5 sigmoid(exp(A_log) f).
class KdaLayer : public RecurrentLayer {
 public:
  explicit KdaLayer(const LayerConfig& config) : RecurrentLayer("kda", true) {
    LayerOptions options("kda", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 1.0);
    const int64_t value_dim = options.head_width("expand_v", 1.0);
    const int64_t taps = options.integer("conv", 4);
    const int64_t rank = options.integer("rank", value_dim);
    bounded_ = options.flag("bounded", false);
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim, hv = heads_ * value_dim;
    projections(qkv_, hk, hk, hv, c);
    convolutions(qkv_, taps);
    params_.matrix(decay_down_, "f_proj.0.weight", rank, c);
    params_.matrix(decay_up_, "f_proj.1.weight", hk, rank);
    const at::Tensor rate = at::empty({heads_}, init_options()).uniform_(1.0, 16.0).log();
    params_.tensor(a_log_, "A_log", bounded_ ? at::zeros_like(rate) : rate);
    params_.tensor(dt_bias_, "dt_bias", init_dt_bias(hk));
    params_.matrix(beta_, "b_proj.weight", heads_, c);
    params_.matrix(gate_down_, "g_proj.0.weight", rank, c);
    params_.matrix(gate_up_, "g_proj.1.weight", hv, rank);
    params_.tensor(gate_bias_, "g_proj.1.bias", at::zeros({hv}, init_options()));
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
    const at::Tensor f =
        linear(linear(x, decay_down_), decay_up_).to(at::kFloat).add(dt_bias_.to(at::kFloat));
    const at::Tensor rate = at::exp(a_log_.to(at::kFloat)).unsqueeze(-1);  // [H,1]
    op::ScanInputs in;
    in.log_decay = bounded_ ? at::sigmoid(mixer::heads(f, heads_).mul(rate)).mul(-5)
                            : mixer::heads(at::softplus(f), heads_).mul(rate.neg());
    in.beta = at::sigmoid(linear(x, beta_).to(at::kFloat));
    const at::Tensor o = pass.scan(state_, q, k, v, in, scan_);
    const at::Tensor gate = at::sigmoid(linear(linear(x, gate_down_), gate_up_, gate_bias_));
    return linear(rms_norm(o, norm_, 1e-5).flatten(2).mul(gate), out_);
  }

 private:
  int64_t heads_;
  bool bounded_;
  QkvTokens qkv_;
  Weight decay_down_, decay_up_, beta_, gate_down_, gate_up_, out_;
  at::Tensor a_log_, dt_bias_, gate_bias_, norm_;
  size_t state_;
  op::ScanOptions scan_;
};

}  // namespace

void register_kda(Registry& registry) {
  Mechanism m;
  m.card.id = "kda";
  m.card.equations =
      "S' = diag(a_t) S_{t-1}\nS_t = S' + beta_t k_t^T (v_t - k_t S')\nout_t = scale q_t S_t";
  set_scan_row(
      m.card,
      {gate("beta", "B,T,H", Sample::kGate), gate("log_decay", "B,T,H,K", Sample::kLogDecay)},
      Sample::kUnit);
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) { return scan_core(call); };
  m.layer = [](const LayerConfig& config) { return std::make_unique<KdaLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
