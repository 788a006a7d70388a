// Retention: a matrix state with one fixed decay per head.
// Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", arXiv
// 2307.08621 (recurrence: eq. 6; decays: section 2.3).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// log(1 - 2^(-5-h)), h = 0, 1, ...: float64 [H].
at::Tensor default_log_decay(int64_t heads) {
  const at::Tensor h = at::arange(heads, at::kDouble);
  return at::log1p(at::exp2(h.neg().sub(5.0)).neg());
}

// y = (swish(x Wg) . RMSNorm_head(o)) Wo with rotary q and k; v is twice as wide as q and k.
class RetNetLayer : public RecurrentLayer {
 public:
  explicit RetNetLayer(const LayerConfig& config) : RecurrentLayer("retnet") {
    LayerOptions options("retnet", config);
    heads_ = options.heads();
    key_dim_ = options.head_width("expand_k", 1.0);
    const int64_t value_dim = options.head_width("expand_v", 2.0);
    theta_ = options.number("rope_theta", 10000.0, 0);  // 0: no rotation
    options.close();
    if (theta_ > 0 && key_dim_ % 2 != 0) {
      throw UsageError("mixer retnet: rotation needs an even key width, it is {}", key_dim_);
    }
    const int64_t c = options.hidden(), hk = heads_ * key_dim_, hv = heads_ * value_dim;
    projections(qkv_, hk, hk, hv, c);
    params_.matrix(gate_, "g_proj.weight", hv, c);
    params_.tensor(norm_, "g_norm.weight", at::ones({value_dim}, init_options()));
    params_.matrix(out_, "o_proj.weight", c, hv);
    state_ = fixed("state", {1, heads_, key_dim_, value_dim});
    scan_.scale = 1.0 / std::sqrt(static_cast<double>(key_dim_));
  }

  Traits traits() const override { return recurrent_traits(false); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    at::Tensor q = pass.tokens(qkv_.q, x, heads_), k = pass.tokens(qkv_.k, x, heads_);
    const at::Tensor v = pass.tokens(qkv_.v, x, heads_);
    if (theta_ > 0) {
      const RopeTables angles = rope_at(pass.positions(), key_dim_, theta_);
      q = rotate(q, angles.cos, angles.sin);
      k = rotate(k, angles.cos, angles.sin);
    }
    op::ScanInputs in;
    in.log_decay = default_log_decay(heads_).to(x.device(), at::kFloat);
    const at::Tensor o = pass.scan(state_, q, k, v, in, scan_);
    const at::Tensor gate = at::silu(linear(x, gate_));
    return linear(rms_norm(o, norm_, 1e-5).flatten(2).mul(gate), out_);
  }

 private:
  int64_t heads_, key_dim_;
  double theta_;
  QkvTokens qkv_;
  Weight gate_, out_;
  at::Tensor norm_;
  size_t state_;
  op::ScanOptions scan_;
};

}  // namespace

void register_retnet(Registry& registry) {
  Mechanism m;
  m.card.id = "retnet";
  m.card.equations = "S_t = a_h S_{t-1} + k_t^T v_t,  a_h = 1 - 2^(-5-h)\nout_t = scale q_t S_t";
  set_scan_row(m.card, {gate("log_decay", "H", Sample::kLogDecay, true)});
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) {
    ScanParts parts;
    const at::Tensor q = call.get("q");
    parts.in.log_decay = call.get("log_decay");
    if (!parts.in.log_decay.defined()) {
      parts.in.log_decay = default_log_decay(q.size(2)).to(q.device());
    }
    return scan_core(call, parts);
  };
  m.layer = [](const LayerConfig& config) { return std::make_unique<RetNetLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
