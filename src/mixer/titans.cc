// Titans' long-term memory: a linear map that learns by gradient descent with momentum and
// forgetting while it is read. Behrouz et al., "Titans: Learning to Memorize at Test Time", arXiv
// 2501.00663 (eqs. 8-14, section 3.2 for chunks: gradients are taken at the chunk's start).
#include <ATen/ATen.h>

#include "mixer/common/learn_layer.h"
#include "mixer/common/rows.h"

namespace heed::mixer {
namespace {

using at::Tensor;

// One decode step after another.
NamedTensors decode(op::LearnTensors x, const op::LearnOptions& options) {
  const int64_t batch = x.q.size(0), heads = x.q.size(2), keys = x.k.size(3), values = x.v.size(3);
  const auto state = [&](const Tensor& given) {
    if (given.defined()) return given.to(at::kFloat).clone(at::MemoryFormat::Contiguous);
    return at::zeros({batch, heads, keys, values}, x.q.options().dtype(at::kFloat));
  };
  const Tensor memory = state(x.initial_state), momentum = state(x.initial_momentum);
  const Tensor running = memory.clone();
  const Tensor position = at::zeros({batch}, memory.options());
  std::vector<Tensor> outs = {x.v.slice(1, 0, 0)};
  for (int64_t t = 0; t < x.q.size(1); ++t) {
    op::LearnTensors step = x;
    for (Tensor* row : {&step.q, &step.k, &step.v, &step.alpha, &step.eta, &step.theta}) {
      *row = row->slice(1, t, t + 1);
    }
    step.initial_state = memory, step.initial_momentum = momentum;
    step.initial_running = running, step.initial_position = position;
    op::learn_step(step, options);
    outs.push_back(step.out);
  }
  return {{"out", at::cat(outs, 1)}, {"final_state", running}, {"final_momentum", momentum}};
}

NamedTensors titans_core(const CoreCall& call) {
  op::LearnTensors x;
  x.q = call.get("q"), x.k = call.get("k"), x.v = call.get("v");
  x.alpha = call.get("alpha"), x.eta = call.get("eta"), x.theta = call.get("theta");
  x.initial_state = call.get("initial_state");
  x.initial_momentum = call.get("initial_momentum");
  op::LearnOptions options;
  options.scale = call.settings.number("scale", 1);
  options.chunk = call.settings.integer("chunk");
  if (call.form == "recurrent") return decode(x, options);
  run_learn(call.form, x, options);
  return {{"out", x.out}, {"final_state", x.final_state}, {"final_momentum", x.final_momentum}};
}

// The memory alone (LMM): q, k = l2norm(silu(conv(x W))), v = silu(conv(x Wv)), alpha, eta, theta =
// sigmoid(x W + b), y = (RMSNorm_head(o) . silu(x Wg)) Wo.
class TitansLayer : public LearnLayer {
 public:
  explicit TitansLayer(const LayerConfig& config) : LearnLayer("titans", true) {
    LayerOptions options("titans", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 1.0);
    const int64_t value_dim = options.head_width("expand_v", 1.0);
    const int64_t taps = options.integer("conv", 4);
    learn_.chunk = options.integer("chunk", 16);
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim, hv = heads_ * value_dim;
    projections(qkv_, hk, hk, hv, c);
    convolutions(qkv_, taps);
    // Slow at first: all errors of a chunk are taken at one memory, and their steps add up.
    const auto rate = [&](Rate& to, const std::string& name, double bias) {
      params_.matrix(to.weight, name + "_proj.weight", heads_, c);
      params_.tensor(to.bias, name + "_proj.bias", at::full({heads_}, bias, init_options()));
    };
    rate(alpha_, "alpha", -4);
    rate(eta_, "eta", -2);
    rate(theta_, "theta", -4);
    params_.matrix(gate_, "g_proj.weight", hv, c);
    params_.tensor(norm_, "o_norm.weight", at::ones({value_dim}, init_options()));
    params_.matrix(out_, "o_proj.weight", c, hv);
    memory(heads_, key_dim, value_dim, true);
  }

 protected:
  Tensor mix(const Tensor& x, RecurrentPass& pass) override {
    op::LearnTensors t;
    t.q = l2_norm(pass.tokens(qkv_.q, x, heads_), 1e-6);
    t.k = l2_norm(pass.tokens(qkv_.k, x, heads_), 1e-6);
    t.v = pass.tokens(qkv_.v, x, heads_);
    t.alpha = alpha_(x), t.eta = eta_(x), t.theta = theta_(x);
    const Tensor o = learn(pass, t);
    const Tensor gate = at::silu(linear(x, gate_));
    return linear(rms_norm(o, norm_, 1e-5).flatten(2).mul(gate), out_);
  }

 private:
  struct Rate {
    Weight weight;
    Tensor bias;
    Tensor operator()(const Tensor& x) const {
      return at::sigmoid(linear(x, weight).to(at::kFloat).add(bias.to(at::kFloat)));
    }
  };

  int64_t heads_;
  QkvTokens qkv_;
  Rate alpha_, eta_, theta_;
  Weight gate_, out_;
  Tensor norm_;
};

}  // namespace

void register_titans(Registry& registry) {
  Mechanism m;
  m.card.id = "titans";
  m.card.equations =
      "G_t = 2 k_t^T (k_t M* - v_t),  M* the memory at the start of the chunk\n"
      "Z_t = eta_t Z_{t-1} - theta_t G_t,  M_t = (1 - alpha_t) M_{t-1} + Z_t\n"
      "out_t = scale q_t M_t";
  m.card.state_size = "2 H K V";
  m.card.state_note = "and with chunk > 1 the memory of the open chunk";
  ApplyRow& row = m.card.apply;
  row.inputs = {token("q", "B,T,H,K"),
                token("k", "B,T,H,K", Sample::kUnit),
                token("v", "B,T,H,V"),
                gate("alpha", "B,T,H", Sample::kGate),
                gate("eta", "B,T,H", Sample::kGate),
                gate("theta", "B,T,H", Sample::kStep)};
  row.settings = {chunk_setting("1"), scale_setting("1")};
  row.forms = {"chunked", "naive", "recurrent"};
  set_learn_card(m, "V", {{"state", "Ns,H,K,V"}, {"momentum", "Ns,H,K,V"}}, {{"K", 7}, {"V", 5}});
  m.core = titans_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<TitansLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
