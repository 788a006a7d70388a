// Linear attention: the softmax's exponential replaced by a product of features, so that all keys
// and values fit into one matrix. Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236
// (eqs. 16-20).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// Every token reads the sum over all tokens.
std::tuple<at::Tensor, at::Tensor> noncausal(const std::string& form, const at::Tensor& q,
                                             const at::Tensor& k, const at::Tensor& v,
                                             const at::Tensor& initial, double scale) {
  const auto compute = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor qc = q.to(compute).mul(scale), kc = k.to(compute), vc = v.to(compute);
  at::Tensor state;
  if (form == "naive") {
    state = at::zeros({q.size(0), q.size(2), q.size(3), v.size(3)}, qc.options());
    for (int64_t t = 0; t < q.size(1); ++t) {
      state = state.add(kc.select(1, t).unsqueeze(-1).mul(vc.select(1, t).unsqueeze(-2)));
    }
  } else {
    state = at::matmul(kc.permute({0, 2, 3, 1}), vc.permute({0, 2, 1, 3}));
  }
  if (initial.defined()) state = state.add(initial.to(compute));
  const at::Tensor out = at::matmul(qc.transpose(1, 2), state).transpose(1, 2);
  return {out.to(v.scalar_type()), state};
}

NamedTensors linear_attention_core(const CoreCall& call) {
  const bool causal = call.settings.flag("causal", true);
  const bool normalize = call.settings.flag("normalize", false);
  at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const at::ScalarType type = v.scalar_type();
  op::ScanInputs in;
  in.initial_state = call.get("initial_state");
  in.cu_seqlens = call.get("cu_seqlens");
  const op::ScanOptions options = scan_options(call, q);
  if (normalize) {
    // The denominator must not be rounded to bfloat16.
    const auto compute = type == at::kDouble ? at::kDouble : at::kFloat;
    q = q.to(compute);
    k = k.to(compute);
    v = with_ones(v.to(compute));
    const at::Tensor z = call.get("initial_z");
    if (in.initial_state.defined() || z.defined()) {
      const at::Tensor s =
          in.initial_state.defined()
              ? in.initial_state
              : at::zeros({z.size(0), z.size(1), z.size(2), v.size(3) - 1}, z.options());
      const at::Tensor zs =
          z.defined() ? z : at::zeros({s.size(0), s.size(1), s.size(2)}, s.options());
      in.initial_state = at::cat({s, zs.unsqueeze(-1)}, -1);
    }
  }
  auto [out, state] = causal ? run_scan(call.form, q, k, v, in, options)
                             : noncausal(call.form, q, k, v, in.initial_state, options.scale);
  if (!normalize) return {{"out", out}, {"final_state", state}};
  const int64_t width = v.size(3) - 1;
  const double eps = call.settings.number("eps", 1e-10);
  out = out.slice(-1, 0, width).div(out.slice(-1, width).add(eps)).to(type);
  return {{"out", out},
          {"final_state", state.slice(-1, 0, width)},
          {"final_z", state.select(-1, width)}};
}

// y = o Wo with o = phi(q) S / (phi(q).z + eps), phi = elu + 1 (or relu, identity).
class LinearAttentionLayer : public RecurrentLayer {
 public:
  explicit LinearAttentionLayer(const LayerConfig& config) : RecurrentLayer("linear-attention") {
    LayerOptions options("linear-attention", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 1.0);
    value_dim_ = options.head_width("expand_v", 1.0);
    normalize_ = options.flag("normalize", true);
    elu_ = options.flag("elu", true);  // else relu
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim, hv = heads_ * value_dim_;
    projections(qkv_, hk, hk, hv, c);
    params_.matrix(out_, "o_proj.weight", c, hv);
    if (!normalize_) {
      params_.tensor(norm_, "o_norm.weight", at::ones({value_dim_}, init_options()));
    }
    state_ = fixed("state", {1, heads_, key_dim, value_dim_ + (normalize_ ? 1 : 0)});
    scan_.scale = 1.0 / std::sqrt(static_cast<double>(key_dim));
  }

  Traits traits() const override { return recurrent_traits(false); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const auto feature = [&](const HeadTokens& to) {
      const at::Tensor y = pass.tokens(to, x, heads_);
      return elu_ ? at::elu(y).add(1.0) : at::relu(y);
    };
    at::Tensor q = feature(qkv_.q), k = feature(qkv_.k), v = pass.tokens(qkv_.v, x, heads_);
    if (normalize_) {
      q = q.to(at::kFloat);
      k = k.to(at::kFloat);
      v = with_ones(v.to(at::kFloat));
    }
    at::Tensor o = pass.scan(state_, q, k, v, {}, scan_);
    if (normalize_) {
      o = o.slice(-1, 0, value_dim_).div(o.slice(-1, value_dim_).add(1e-6)).to(x.scalar_type());
    } else {
      o = rms_norm(o, norm_, 1e-5);
    }
    return linear(o.flatten(2), out_);
  }

 private:
  int64_t heads_, value_dim_;
  bool normalize_, elu_;
  QkvTokens qkv_;
  Weight out_;
  at::Tensor norm_;
  size_t state_;
  op::ScanOptions scan_;
};

}  // namespace

void register_linear_attention(Registry& registry) {
  Mechanism m;
  m.card.id = "linear-attention";
  m.card.equations =
      "S_t = S_{t-1} + k_t^T v_t,  z_t = z_{t-1} + k_t\n"
      "out_t = scale q_t S_t  (normalize: / (scale q_t.z_t + eps))";
  m.card.patterns = "causal self, noncausal self";
  set_scan_row(m.card, {gate("initial_z", "Ns,H,K", Sample::kGate, true).only("normalize=true")},
               Sample::kGate);
  ApplyRow& row = m.card.apply;
  row.inputs[0].sample = Sample::kGate;
  row.inputs.back() = offsets().only("causal=true");
  row.settings = {flag_setting("causal", true), flag_setting("normalize", false),
                  number_setting("eps", "1e-10"), scale_setting(), chunk_setting()};
  row.outputs.push_back(output("final_z", "Ns,H,K").only("normalize=true"));
  row.forms = {{"chunked", "causal=true"},
               {"parallel", "causal=false"},
               "naive",
               {"recurrent", "causal=true"}};
  m.card.state_size = "H K (V+normalize)";
  m.traits = recurrent_traits(false);
  m.core = linear_attention_core;
  m.layer = [](const LayerConfig& config) {
    return std::make_unique<LinearAttentionLayer>(config);
  };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
