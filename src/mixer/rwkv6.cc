// RWKV-6 (Finch): decay per channel and token, read before the write, with a bonus for the current
// token. Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
// arXiv 2404.05892 (data-dependent token shift: eqs. 14-18; recurrence: eq. 19).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// With d = x_{t-1} - x_t and m_z = tanh((x + d mu) A) B_z + bias_z for z in r, w, k, v, g, each
// projection sees x + d m_z. log a = -exp(w0 + tanh(x_w A_w) B_w). y = (GroupNorm_head(o) .
// silu(x_g Wg)) Wo.
class Rwkv6Layer : public RecurrentLayer {
 public:
  explicit Rwkv6Layer(const LayerConfig& config) : RecurrentLayer("rwkv6") {
    LayerOptions options("rwkv6", config);
    heads_ = options.heads();
    const int64_t dim = options.head_width("expand", 1.0);
    mix_rank_ = options.integer("mix_rank", 32);
    const int64_t decay_rank = options.integer("decay_rank", 64);
    options.close();
    const int64_t c = options.hidden(), width = heads_ * dim;
    params_.matrix(r_, "r_proj.weight", width, c);
    params_.matrix(k_, "k_proj.weight", width, c);
    params_.matrix(v_, "v_proj.weight", width, c);
    params_.matrix(gate_, "g_proj.weight", width, c);
    params_.matrix(out_, "o_proj.weight", c, width);
    // Earlier channels look further back, as in the published initialisation.
    const at::Tensor channel = at::arange(c, init_options()).div(static_cast<double>(c));
    const at::Tensor first = at::ones({c}, init_options()).sub(channel);
    params_.tensor(mix_base_, "mix.base", first);
    params_.tensor(mix_bias_, "mix.bias", first.expand({5, c}).clone());
    params_.matrix(mix_down_, "mix.down.weight", init_uniform({5 * mix_rank_, c}, 1e-4));
    params_.tensor(mix_up_, "mix.up", init_uniform({5, c, mix_rank_}, 1e-2));
    const at::Tensor n = at::arange(width, init_options()).div(std::max<double>(1.0, width - 1.0));
    params_.tensor(decay_base_, "decay.base", n.pow(0.7).mul(5.0).sub(6.0));
    params_.matrix(decay_down_, "decay.down.weight", init_uniform({decay_rank, c}, 1e-4));
    params_.matrix(decay_up_, "decay.up.weight", init_uniform({width, decay_rank}, 1e-2));
    params_.tensor(bonus_, "bonus", at::zeros({heads_, dim}, init_options()));
    params_.tensor(norm_, "norm.weight", at::ones({width}, init_options()));
    params_.tensor(norm_bias_, "norm.bias", at::zeros({width}, init_options()));
    state_ = fixed("state", {1, heads_, dim, dim});
    shift_ = history("shift", c, 1);
  }

  Traits traits() const override { return recurrent_traits(true); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const int64_t b = x.size(0), t = x.size(1);
    const at::Tensor d = pass.previous(shift_, x).sub(x);
    const at::Tensor low =
        at::tanh(linear(x.add(d.mul(mix_base_)), mix_down_)).view({b, t, 5, mix_rank_});
    const auto mixed = [&](int64_t z) {
      const Weight up{mix_up_.select(0, z)};
      return x.add(d.mul(linear(low.select(2, z), up).add(mix_bias_.select(0, z))));
    };
    const at::Tensor r = mixer::heads(linear(mixed(0), r_), heads_);
    const at::Tensor w = linear(at::tanh(linear(mixed(1), decay_down_)), decay_up_)
                             .to(at::kFloat)
                             .add(decay_base_.to(at::kFloat));
    const at::Tensor k = mixer::heads(linear(mixed(2), k_), heads_);
    const at::Tensor v = mixer::heads(linear(mixed(3), v_), heads_);
    const at::Tensor g = at::silu(linear(mixed(4), gate_));
    op::ScanInputs in;
    in.log_decay = mixer::heads(at::exp(w).neg(), heads_);
    in.bonus = bonus_.to(at::kFloat);
    op::ScanOptions options;
    options.read_before = true;
    const at::Tensor o = pass.scan(state_, r, k, v, in, options);
    const at::Tensor normed = group_norm(o, norm_, norm_bias_, 64e-5);
    return linear(normed.to(x.scalar_type()).mul(g), out_);
  }

 private:
  int64_t heads_, mix_rank_;
  Weight r_, k_, v_, gate_, out_, mix_down_, decay_down_, decay_up_;
  at::Tensor mix_base_, mix_bias_, mix_up_, decay_base_, bonus_, norm_, norm_bias_;
  size_t state_, shift_;
};

}  // namespace

void register_rwkv6(Registry& registry) {
  Mechanism m;
  m.card.id = "rwkv6";
  m.card.equations =
      "out_t = scale r_t (S_{t-1} + diag(u) k_t^T v_t)\nS_t = diag(a_t) S_{t-1} + k_t^T v_t";
  m.card.state_note = "and the last input";
  set_scan_row(m.card, {gate("log_decay", "B,T,H,K", Sample::kLogDecay), gate("u", "H,K")},
               Sample::kKey, "r");
  m.card.apply.settings = {scale_setting("1"), chunk_setting()};
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) {
    ScanParts parts;
    parts.q = call.get("r");
    parts.in.bonus = call.get("u");
    parts.read_before = true;
    return scan_core(call, parts);
  };
  m.layer = [](const LayerConfig& config) { return std::make_unique<Rwkv6Layer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
