// TTT-linear: a linear model that is trained, token by token, to map a view of the input to
// another behind a layer norm; its weights are the hidden state. Sun et al., "Learning to (Learn at
// Test Time): RNNs with Expressive Hidden States", arXiv 2407.04620 (eqs. 1-5, section 2.7 for the
// form with one product of matrices a chunk). variant=fla is what flash-linear-attention computes.
#include <ATen/ATen.h>

#include "mixer/common/learn_layer.h"
#include "mixer/common/rows.h"

namespace heed::mixer {
namespace {

using at::Tensor;

// tau_i of the token's place i in its chunk, from 1: given [chunk], else 1/i. [B,T,H].
Tensor gains(const Tensor& tau, const Tensor& like, int64_t chunk) {
  const int64_t tokens = like.size(1);
  const Tensor place = at::arange(tokens, like.options().dtype(at::kLong)).remainder(chunk);
  const Tensor gain = tau.defined() ? tau.to(like.scalar_type()).index_select(0, place)
                                    : place.add(1).to(like.scalar_type()).reciprocal();
  return gain.unsqueeze(-1).expand(like.sizes()).contiguous();
}

// scale q + LN(o) of the paper, o + LN(o) else.
Tensor answers(const op::LearnTensors& x, const op::LearnOptions& options, bool paper) {
  const Tensor normed = at::layer_norm(x.out, {x.out.size(-1)}, {}, {}, options.eps);
  const Tensor kept = paper ? x.q.mul(options.scale) : x.out;
  return kept.add(normed.mul(x.norm_weight)).add(x.norm_bias);
}

NamedTensors ttt_linear_core(const CoreCall& call) {
  const Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const auto compute = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const bool paper = call.settings.is("variant", "paper");
  const double width = static_cast<double>(std::max<int64_t>(1, q.size(-1)));
  op::LearnOptions options;
  options.scale = call.settings.number("scale", paper ? 1 : 1 / std::sqrt(width));
  options.eps = call.settings.number("eps", 1e-6);
  options.chunk = call.settings.integer("chunk");
  options.norm = options.bias = 1;
  op::LearnTensors x;
  x.q = q.to(compute), x.k = k.to(compute);
  x.v = v.to(compute).sub(x.k);  // what is left to learn beside the key itself
  x.norm_weight = call.get("ln_weight"), x.norm_bias = call.get("ln_bias");
  x.initial_state = call.get("initial_state"), x.initial_bias = call.get("initial_bias");
  if (paper) {
    x.theta = call.get("lr");
    x.gain = gains(call.get("tau"), x.theta, options.chunk);
  } else {
    x.gain = call.get("eta");
  }
  run_learn(call.form, x, options);
  const Tensor out = answers(x, options, paper);
  return {{"out", out.to(q.scalar_type())},
          {"final_state", x.final_state},
          {"final_bias", x.final_bias}};
}

// y = answers(x) Wo with q, k, v = x W, lr = rate sigmoid(x w + b) / K, learned tau (1/i at first)
// and the memory's first weights; `fla`: the other variant, with eta = tau lr.
class TttLinearLayer : public LearnLayer {
 public:
  explicit TttLinearLayer(const LayerConfig& config) : LearnLayer("ttt-linear", true) {
    LayerOptions options("ttt-linear", config);
    heads_ = options.heads();
    const int64_t dim = options.head_width("expand", 1.0);
    const int64_t taps = options.integer("conv", 0, 0);  // 0: no short convolution
    learn_.chunk = options.integer("chunk", 16);
    paper_ = !options.flag("fla", false);
    rate_ = options.number("rate", 1.0, 0) / static_cast<double>(dim);
    options.close();
    learn_.norm = learn_.bias = 1;
    learn_.scale = paper_ ? 1.0 : 1.0 / std::sqrt(static_cast<double>(dim));
    const int64_t c = options.hidden(), width = heads_ * dim;
    projections(qkv_, width, width, width, c);
    convolutions(qkv_, taps);
    params_.matrix(lr_, "lr_proj.weight", heads_, c);
    params_.tensor(lr_bias_, "lr_proj.bias", at::zeros({heads_}, init_options()));
    params_.tensor(tau_, "tau", at::arange(1, learn_.chunk + 1, init_options()).reciprocal());
    params_.tensor(ln_weight_, "ln.weight", at::ones({heads_, dim}, init_options()));
    params_.tensor(ln_bias_, "ln.bias", at::zeros({heads_, dim}, init_options()));
    params_.matrix(out_, "o_proj.weight", c, width);
    memory(heads_, dim, dim, false);
  }

 protected:
  Tensor mix(const Tensor& x, RecurrentPass& pass) override {
    const auto project = [&](const HeadTokens& to) {
      return pass.tokens(to, x, heads_).to(at::kFloat);
    };
    op::LearnTensors t;
    t.q = project(qkv_.q), t.k = project(qkv_.k);
    t.v = project(qkv_.v).sub(t.k);
    t.norm_weight = ln_weight_.to(at::kFloat), t.norm_bias = ln_bias_.to(at::kFloat);
    const Tensor lr = at::sigmoid(linear(x, lr_).to(at::kFloat).add(lr_bias_.to(at::kFloat)));
    const Tensor tau = tau_.to(at::kFloat).index({pass.places(learn_.chunk)}).unsqueeze(-1);
    if (paper_) {
      t.theta = lr.mul(rate_);
      t.gain = tau.expand_as(lr);
    } else {
      t.gain = lr.mul(rate_).mul(tau);
    }
    t.out = learn(pass, t);
    return linear(answers(t, learn_, paper_).flatten(2).to(x.scalar_type()), out_);
  }

 private:
  int64_t heads_;
  bool paper_;
  double rate_;
  QkvTokens qkv_;
  Weight lr_, out_;
  Tensor lr_bias_, tau_, ln_weight_, ln_bias_;
};

}  // namespace

void register_ttt_linear(Registry& registry) {
  Mechanism m;
  m.card.id = "ttt-linear";
  m.card.equations =
      "y = k_j W + b, W and b of the chunk's start; dz_j the gradient by y of\n"
      "1/2 |LN(y) - (v_j - k_j)|^2, LN with ln_weight, ln_bias\n"
      "W_i = W - sum_{j<=i} e_ij k_j^T dz_j,  b_i = b - sum_{j<=i} e_ij dz_j,  o_i = scale q_i W_i "
      "+ "
      "b_i\n"
      "paper: e_ij = tau_i lr_j (tau 1/i), out_i = scale q_i + LN(o_i)\n"
      "fla: e_ij = eta_i, out_i = o_i + LN(o_i)";
  m.card.state_size = "H (K K+K)";
  m.card.state_note = "and the memory of the open chunk";
  ApplyRow& row = m.card.apply;
  row.inputs = {token("q", "B,T,H,K"),
                token("k", "B,T,H,K", Sample::kKey),
                token("v", "B,T,H,K"),
                gate("ln_weight", "H,K", Sample::kGate),
                gate("ln_bias", "H,K"),
                gate("lr", "B,T,H", Sample::kStep).only("variant=paper"),
                gate("tau", "chunk", Sample::kGate).maybe().only("variant=paper"),
                gate("eta", "B,T,H", Sample::kStep).only("variant=fla")};
  row.settings = {word_setting("variant", {"paper", "fla"}), chunk_setting("16"),
                  number_setting("eps", "1e-6"), scale_setting("paper 1, fla 1/sqrt(K)")};
  row.forms = {"chunked", "naive"};
  set_learn_card(m, "K", {{"state", "Ns,H,K,K"}, {"bias", "Ns,H,K"}}, {{"K", 8}});
  m.card.tests.bound = {
      1e-5, 5e-5,
      "each chunk divides by the deviation of the memory's answers, which may be small, "
      "and the next one starts from the result"};
  m.core = ttt_linear_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<TttLinearLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
