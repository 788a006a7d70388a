// Gated linear attention: a matrix state with a data-dependent decay per key channel.
// Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv
// 2312.06635 (recurrence: eq. 3; chunked form: section 4; layer: section 4.4).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// y = (swish(x Wr) . RMSNorm_head(o)) Wo, log a = logsigmoid(x W1 W2 + b) / 16.
class GlaLayer : public RecurrentLayer {
 public:
  explicit GlaLayer(const LayerConfig& config) : RecurrentLayer("gla") {
    LayerOptions options("gla", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 0.5);
    const int64_t value_dim = options.head_width("expand_v", 1.0);
    const int64_t rank = options.integer("gate_rank", 16);
    normalizer_ = options.positive("gate_normalizer", 16.0);
    const int64_t taps = options.integer("conv", 0, 0);  // 0: no short convolution
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim, hv = heads_ * value_dim;
    projections(qkv_, hk, hk, hv, c);
    params_.matrix(gate_, "g_proj.weight", hv, c);
    params_.matrix(decay_down_, "gk_proj.0.weight", rank, c);
    params_.matrix(decay_up_, "gk_proj.1.weight", hk, rank);
    params_.tensor(decay_bias_, "gk_proj.1.bias", at::zeros({hk}, init_options()));
    params_.tensor(norm_, "g_norm.weight", at::ones({value_dim}, init_options()));
    params_.matrix(out_, "o_proj.weight", c, hv);
    convolutions(qkv_, taps);
    state_ = fixed("state", {1, heads_, key_dim, value_dim});
    scan_.scale = 1.0 / std::sqrt(static_cast<double>(key_dim));
  }

  Traits traits() const override { return recurrent_traits(true); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const at::Tensor q = pass.tokens(qkv_.q, x, heads_), k = pass.tokens(qkv_.k, x, heads_);
    const at::Tensor v = pass.tokens(qkv_.v, x, heads_);
    const at::Tensor z = linear(linear(x, decay_down_), decay_up_, decay_bias_);
    op::ScanInputs in;
    in.log_decay = mixer::heads(at::log_sigmoid(z.to(at::kFloat)).div(normalizer_), heads_);
    const at::Tensor o = pass.scan(state_, q, k, v, in, scan_);
    const at::Tensor gate = at::silu(linear(x, gate_));
    return linear(rms_norm(o, norm_, 1e-5).flatten(2).mul(gate), out_);
  }

 private:
  int64_t heads_;
  double normalizer_;
  QkvTokens qkv_;
  Weight gate_, decay_down_, decay_up_, out_;
  at::Tensor decay_bias_, norm_;
  size_t state_;
  op::ScanOptions scan_;
};

}  // namespace

void register_gla(Registry& registry) {
  Mechanism m;
  m.card.id = "gla";
  m.card.equations = "S_t = diag(a_t) S_{t-1} + k_t^T v_t\nout_t = scale q_t S_t";
  set_scan_row(m.card, {gate("log_decay", "B,T,H,K", Sample::kLogDecay)});
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) { return scan_core(call); };
  m.layer = [](const LayerConfig& config) { return std::make_unique<GlaLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
