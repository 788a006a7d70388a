// Selective self-attention: a temperature of the query and a gain of the value, by token and by
// position. Zhang et al., "Selective Attention: Enhancing Transformer through Principled Context
// Control", arXiv 2411.12892. Both gains fold into q and v before plain attention.
#include <ATen/ATen.h>

#include "mixer/common/attend_core.h"
#include "mixer/common/attention_layer.h"
#include "mixer/common/dense_attention.h"

namespace heed::mixer {
namespace {

// s of tau_i = 1 + tanh(fq_i) + s ln n_i.
at::Tensor position_gain(const at::Tensor& alpha, const std::string& position) {
  if (position == "sigmoid") return at::sigmoid(alpha);
  if (position == "exp") return at::exp(at::exp(alpha).neg());
  return alpha;
}

// tau [B or 1,Tq,Hq or 1,1] in float32 or float64.
at::Tensor temperature(const CoreCall& call, const at::Tensor& q, int64_t tk, bool causal) {
  const auto wide = q.options().dtype(dense_type(q));
  const int64_t tq = q.size(1);
  at::Tensor tau = at::ones({1, tq, 1}, wide);
  if (const at::Tensor fq = call.get("fq"); fq.defined()) {
    tau = tau.add(at::tanh(fq.to(wide.dtype())));
  }
  if (const at::Tensor alpha = call.get("alpha"); alpha.defined()) {
    at::Tensor n = at::full({tq}, tk, wide);
    if (causal) n = at::arange(tq, wide).add(tk - tq + 1);
    const at::Tensor s = position_gain(alpha.to(wide.dtype()), call.settings.word("position"));
    tau = tau.add(at::log(n.clamp_min(1.0)).view({1, tq, 1}).mul(s));
  }
  return tau.unsqueeze(3);
}

NamedTensors ssa_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k");
  at::Tensor v = call.get("v");
  const bool causal = call.settings.flag("causal");
  const double scale = call.settings.number("scale", 1 / std::sqrt(static_cast<double>(q.size(3))));
  const at::Tensor tau = temperature(call, q, k.size(1), causal);
  if (const at::Tensor fv = call.get("fv"); fv.defined()) {
    const at::Tensor gain = at::tanh(fv.to(dense_type(v))).add(1.0).unsqueeze(3);
    v = v.to(gain.scalar_type()).mul(gain).to(v.scalar_type());
  }
  if (call.form == "naive") {
    const at::Tensor x = dense_logits(q, k, scale).mul(tau.squeeze(3).transpose(1, 2).unsqueeze(3));
    const at::Tensor visible = dense_visible(q.size(1), k.size(1), causal, q.device());
    return {{"out", dense_values(dense_softmax(x, visible).first, v)}};
  }
  CoreCall folded = call;
  folded.in["q"] = q.to(tau.scalar_type()).mul(tau).to(q.scalar_type());
  folded.in["v"] = v;
  op::AttendOptions options;
  options.causal = causal;
  options.scale = scale;
  return {{"out", std::get<0>(run_attend(folded, options))}};
}

// f(q) = w.gelu(q) + b of each head, from the projection that is there anyway; w = b = 0 at first,
// so that tau is the position's alone. The cache holds v'.
class SsaLayer final : public AttentionLayer {
 public:
  explicit SsaLayer(const LayerConfig& config) : AttentionLayer("ssa", config) {
    position_ = options_.word("position", {"sigmoid", "exp", "linear"});
    const double fallback = position_ == "sigmoid" ? -4 : position_ == "exp" ? 1.5 : 1e-5;
    const double alpha = options_.number("alpha", fallback);
    options_.close();
    rewrites_heads_ = true;
    const auto zeros = [&](at::IntArrayRef shape) { return at::zeros(shape, init_options()); };
    const int64_t d = view().head_dim;
    params_.tensor(q_gain_, "q_gain.weight", zeros({view().heads, d}));
    params_.tensor(q_bias_, "q_gain.bias", zeros({view().heads}));
    params_.tensor(v_gain_, "v_gain.weight", zeros({view().kv_heads, d}));
    params_.tensor(v_bias_, "v_gain.bias", zeros({view().kv_heads}));
    params_.tensor(alpha_, "alpha", at::full({1}, alpha, init_options()));
  }

 protected:
  void before_rope(const at::Tensor& x, Heads& h) override {
    const at::Tensor s = position_gain(alpha_.to(at::kFloat), position_);
    const at::Tensor by_position = visible_keys(h).clamp_min(1.0).log().mul(s).unsqueeze(1);
    h.extra = gain(h.q, q_gain_, q_bias_).add(by_position);  // tau, for mix: norms would undo it
    h.v = h.v.mul(gain(h.v, v_gain_, v_bias_).unsqueeze(2).to(h.v.scalar_type()));
  }
  at::Tensor mix(Heads& h, op::AttendOptions options) override {
    h.q = h.q.mul(h.extra.unsqueeze(2).to(h.q.scalar_type()));
    return AttentionLayer::mix(h, options);
  }

 private:
  // 1 + tanh f, float32 [rows,H].
  static at::Tensor gain(const at::Tensor& t, const at::Tensor& weight, const at::Tensor& bias) {
    const at::Tensor f = at::gelu(t.to(at::kFloat)).mul(weight.to(at::kFloat)).sum(-1);
    return at::tanh(f.add(bias.to(at::kFloat))).add(1.0);
  }

  std::string position_;
  at::Tensor q_gain_, q_bias_, v_gain_, v_bias_, alpha_;
};

}  // namespace

void register_ssa(Registry& registry) {
  Mechanism m;
  m.card.id = "ssa";
  m.card.equations =
      "tau_i = 1 + tanh(fq_i) + s ln n_i,  s = sigmoid(alpha) | exp(-exp(alpha)) | alpha\n"
      "v'_j = (1 + tanh(fv_j)) v_j\n"
      "out_i = sum_j softmax_j(scale tau_i q_i.k_j) v'_j";
  m.card.patterns = "causal self, noncausal self, causal cross, noncausal cross";
  m.card.state_size = "Hk (D+Dv) Tk";
  m.card.state_note = "v' in place of v";
  m.card.apply.inputs = {token("q", "B,Tq,Hq,D"),       token("k", "B,Tk,Hk,D"),
                         token("v", "B,Tk,Hk,Dv"),      gate("fq", "B,Tq,Hq").maybe(),
                         gate("fv", "B,Tk,Hk").maybe(), gate("alpha", "(1|Hq)").maybe()};
  m.card.apply.settings = {word_setting("position", {"sigmoid", "exp", "linear"}),
                           flag_setting("causal", true), scale_setting("1/sqrt(D)")};
  m.card.apply.outputs = {output("out", "B,Tq,Hq,Dv")};
  m.card.apply.forms = {"parallel", "naive", {"recurrent", "causal=true"}};
  m.card.tests.queries = "Tq", m.card.tests.keys = "Tk";
  m.card.tests.heads = {"Hq", "Hk"};
  m.card.tests.sizes = {{"Hq", 4}, {"Hk", 2}, {"D", 9}, {"Dv", 6}};
  m.card.tests.large = {{"D", 64}, {"Dv", 64}};
  m.core = ssa_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<SsaLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
