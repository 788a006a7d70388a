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
  explicit RetNetLayer(const LayerConfig& config) {
    LayerOptions options("retnet", config);
    heads_ = options.heads();
    key_dim_ = options.head_width("expand_k", 1.0);
    value_dim_ = options.head_width("expand_v", 2.0);
    theta_ = options.number("rope_theta", 10000.0);  // 0: no rotation
    options.close();
    if (theta_ > 0 && key_dim_ % 2 != 0) {
      throw UsageError("mixer retnet: rotation needs an even key width, it is {}", key_dim_);
    }
    const int64_t c = options.hidden(), hk = heads_ * key_dim_, hv = heads_ * value_dim_;
    parameters_["q_proj.weight"] = init_projection(hk, c);
    parameters_["k_proj.weight"] = init_projection(hk, c);
    parameters_["v_proj.weight"] = init_projection(hv, c);
    parameters_["g_proj.weight"] = init_projection(hv, c);
    parameters_["g_norm.weight"] = at::ones({value_dim_}, init_options());
    parameters_["o_proj.weight"] = init_projection(c, hv);
  }

  at::Tensor forward(const at::Tensor& x, Call& call) override {
    RecurrentPass pass("retnet", x, call);
    at::Tensor q = heads(project(x, parameter("q_proj.weight")), heads_);
    at::Tensor k = heads(project(x, parameter("k_proj.weight")), heads_);
    const at::Tensor v = heads(project(x, parameter("v_proj.weight")), heads_);
    if (theta_ > 0) {
      const at::Tensor positions = pass.positions();
      q = rotate(q, positions, theta_);
      k = rotate(k, positions, theta_);
    }
    op::ScanInputs in;
    in.log_decay = default_log_decay(heads_).to(x.device(), at::kFloat);
    op::ScanOptions options;
    options.scale = 1.0 / std::sqrt(static_cast<double>(key_dim_));
    const at::Tensor o = pass.scan("state", q, k, v, in, options);
    pass.finish();
    const at::Tensor gate = at::silu(project(x, parameter("g_proj.weight")));
    const at::Tensor normed = rms_norm(o, parameter("g_norm.weight"), 1e-5);
    return project(normed.flatten(2).mul(gate), parameter("o_proj.weight"));
  }

  int64_t flops(int64_t tokens) const override {
    return projection_flops(parameters_, tokens) +
           scan_flops(tokens, heads_, key_dim_, value_dim_, false);
  }
  Traits traits() const override { return recurrent_traits(false); }

 protected:
  std::map<std::string, std::vector<int64_t>> state_shapes() const override {
    return {{"state", {1, heads_, key_dim_, value_dim_}}};
  }

 private:
  int64_t heads_, key_dim_, value_dim_;
  double theta_;
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
