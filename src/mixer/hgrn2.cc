// HGRN2: gated linear attention whose input gate is tied to the forget gate, k = 1 - a. Qin et al.,
// "HGRN2: Gated Linear RNNs with State Expansion", arXiv 2404.07904 (eq. 5).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// y = RMSNorm(o) Wo with q = silu(x Wq), values i = x Wi, f = lb + (1 - lb) sigmoid(x Wf). In the
// paper lb rises with depth by a table that all layers share; here it is an option of each layer.
class Hgrn2Layer : public RecurrentLayer {
 public:
  explicit Hgrn2Layer(const LayerConfig& config) : RecurrentLayer("hgrn2") {
    LayerOptions options("hgrn2", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 1.0);
    const int64_t value_dim = options.head_width("expand_v", 1.0);
    bound_ = options.number("lower_bound", 0);
    scan_.scale = options.positive("scale", 1);
    options.close();
    if (!(bound_ >= 0 && bound_ < 1)) {
      throw UsageError("mixer hgrn2: option lower_bound is {}, expected 0 to below 1", bound_);
    }
    const int64_t c = options.hidden(), hk = heads_ * key_dim, hv = heads_ * value_dim;
    projection(q_, "q", hk, c);
    projection(f_, "f", hk, c);
    projection(i_, "i", hv, c);
    params_.tensor(norm_, "g_norm.weight", at::ones({hv}, init_options()));
    params_.matrix(out_, "o_proj.weight", c, hv);
    state_ = fixed("state", {1, heads_, key_dim, value_dim});
  }

  Traits traits() const override { return recurrent_traits(true); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const at::Tensor q = at::silu(pass.tokens(q_, x, heads_));
    const at::Tensor v = pass.tokens(i_, x, heads_);
    op::ScanInputs in;
    in.log_decay = at::log_sigmoid(pass.tokens(f_, x, heads_).to(at::kFloat));
    if (bound_ > 0) {  // log(lb + (1 - lb) sigmoid)
      const at::Tensor floor = at::full({}, std::log(bound_), in.log_decay.options());
      in.log_decay = at::logaddexp(floor, in.log_decay.add(std::log1p(-bound_)));
    }
    const at::Tensor k = at::expm1(in.log_decay).neg();
    const at::Tensor o = pass.scan(state_, q.to(at::kFloat), k, v.to(at::kFloat), in, scan_);
    return linear(rms_norm(o.flatten(2), norm_, 1e-5).to(x.scalar_type()), out_);
  }

 private:
  int64_t heads_;
  double bound_;
  HeadTokens q_, f_, i_;
  Weight out_;
  at::Tensor norm_;
  size_t state_;
  op::ScanOptions scan_;
};

}  // namespace

void register_hgrn2(Registry& registry) {
  Mechanism m;
  m.card.id = "hgrn2";
  m.card.equations = "S_t = diag(a_t) S_{t-1} + (1 - a_t)^T v_t\nout_t = scale q_t S_t";
  set_scan_row(m.card, {gate("log_decay", "B,T,H,K", Sample::kLogDecay)});
  std::erase_if(m.card.apply.inputs, [](const TensorSpec& spec) { return spec.name == "k"; });
  m.card.apply.settings = {scale_setting("1"), chunk_setting()};
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) {
    // 1 - a is not rounded: the recurrence runs in float32 on the rounded q and v.
    const at::ScalarType type = call.get("v").scalar_type();
    ScanParts parts;
    parts.k = at::expm1(call.get("log_decay")).neg();
    parts.q = call.get("q").to(parts.k.scalar_type());
    parts.v = call.get("v").to(parts.k.scalar_type());
    NamedTensors result = scan_core(call, parts);
    result["out"] = result["out"].to(type);
    return result;
  };
  m.layer = [](const LayerConfig& config) { return std::make_unique<Hgrn2Layer>(config); };
  m.card.tests.layer.options = R"({"lower_bound": 0.25})";
  registry.add(std::move(m));
}

}  // namespace heed::mixer
