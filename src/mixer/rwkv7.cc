// RWKV-7: a channel decay, and a low-rank term that takes out of the state what a removal key
// `kap` reads from it, at the rate `a` per channel. Peng et al., "RWKV-7 Goose with Expressive
// Dynamic State Evolution", arXiv 2503.14456 (section 3, eq. 17).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/channel.h"
#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// What the mixer and its channel mix are asked for.
struct Rwkv7Options : LayerOptions {
  int64_t width, decay_rank, rate_rank, value_rank, gate_rank, intermediate;
  bool channel_mix;

  explicit Rwkv7Options(const LayerConfig& config) : LayerOptions("rwkv7", config) {
    width = head_width("expand", 1.0);
    decay_rank = integer("decay_rank", 64);
    rate_rank = integer("rate_rank", 64);
    value_rank = integer("value_rank", 32);
    gate_rank = integer("gate_rank", 128);
    channel_mix = flag("channel_mix", false);
    intermediate = integer("intermediate", 4 * hidden());
    close();
  }
};

// Earlier channels look further back, as in the published initialisation: [C].
at::Tensor shift_weights(int64_t c) {
  return at::arange(c, init_options()).div(static_cast<double>(c)).neg().add(1);
}

// base + tanh(x A) B or base + x A B, float32.
struct LowRank {
  at::Tensor base;
  Weight down, up;

  at::Tensor operator()(const at::Tensor& x, bool bend) const {
    const at::Tensor low = linear(x, down);
    return linear(bend ? at::tanh(low) : low, up).to(at::kFloat).add(base.to(at::kFloat));
  }
};

// Each of r, w, k, v, a, g sees x + d mu with d = x_{t-1} - x_t. log decay = -e^-1/2 sigmoid(w); a
// = sigmoid(a); kap = l2norm(k . k_k); k~ = k (1 + (a - 1) k_a); from the second layer on v = v +
// (v_first - v) sigmoid(v0 + ..); y = ((GroupNorm_head(o) + (sum_d r k~ r_k) v) . g) Wo.
class Rwkv7Layer : public RecurrentLayer {
 public:
  explicit Rwkv7Layer(const LayerConfig& config) : RecurrentLayer("rwkv7", true) {
    const Rwkv7Options options(config);
    heads_ = options.heads();
    const int64_t c = options.hidden(), dim = options.width, width = heads_ * dim;
    params_.matrix(r_, "r_proj.weight", width, c);
    params_.matrix(k_, "k_proj.weight", width, c);
    params_.matrix(v_, "v_proj.weight", width, c);
    params_.matrix(out_, "o_proj.weight", at::zeros({c, width}, init_options()));
    params_.tensor(mix_, "mix", shift_weights(c).expand({6, c}).clone());
    const auto low_rank = [&](LowRank& to, const std::string& name, int64_t rank,
                              const at::Tensor& base) {
      params_.tensor(to.base, name + ".base", base);
      params_.matrix(to.down, name + ".down.weight", init_uniform({rank, c}, 1e-2));
      params_.matrix(to.up, name + ".up.weight", init_uniform({width, rank}, 1e-2));
    };
    const at::Tensor zero = at::zeros({width}, init_options());
    const at::Tensor n = at::arange(width, init_options()).div(std::max<double>(1.0, width - 1.0));
    low_rank(decay_, "decay", options.decay_rank, n.pow(0.85).mul(5.0).sub(6.5));
    low_rank(rate_, "rate", options.rate_rank, zero.clone());
    if (config.layer > 0) low_rank(value_, "value", options.value_rank, zero.clone());
    params_.matrix(gate_down_, "gate.down.weight", options.gate_rank, c);
    params_.matrix(gate_up_, "gate.up.weight", width, options.gate_rank);
    params_.tensor(removal_, "k_k", at::full({width}, 0.71, init_options()));
    params_.tensor(key_rate_, "k_a", at::full({width}, 1.02, init_options()));
    params_.tensor(bonus_, "r_k", at::full({heads_, dim}, -0.04, init_options()));
    params_.tensor(norm_, "norm.weight", at::ones({width}, init_options()));
    params_.tensor(norm_bias_, "norm.bias", zero);
    state_ = fixed("state", {1, heads_, dim, dim});
    shift_ = history("shift", c, 1);
  }

  Traits traits() const override { return recurrent_traits(true); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const at::Tensor d = pass.previous(shift_, x).sub(x);
    const auto mixed = [&](int64_t z) { return x.add(d.mul(mix_.select(0, z))); };
    const auto by_head = [&](const at::Tensor& t) { return mixer::heads(t, heads_); };
    op::ScanInputs in;
    in.log_decay = by_head(at::sigmoid(decay_(mixed(1), true)).mul(-std::exp(-0.5)));
    const at::Tensor r = by_head(linear(mixed(0), r_).to(at::kFloat));
    const at::Tensor k = linear(mixed(2), k_).to(at::kFloat);
    const at::Tensor v = by_head(values(mixed(3), pass));
    const at::Tensor a = at::sigmoid(rate_(mixed(4), false));
    const at::Tensor g = linear(at::sigmoid(linear(mixed(5), gate_down_)), gate_up_);
    in.r = l2_norm(by_head(k.mul(removal_.to(at::kFloat))), 1e-12);
    in.p = in.r.mul(by_head(a)).neg();
    const at::Tensor key = by_head(k.mul(a.sub(1).mul(key_rate_.to(at::kFloat)).add(1)));
    const at::Tensor o = pass.scan(state_, r, key, v, in, {});
    const at::Tensor own = r.mul(key).mul(bonus_.to(at::kFloat)).sum(-1, true).mul(v);
    const at::Tensor y = group_norm(o, norm_, norm_bias_, 64e-5).add(own.flatten(2));
    return linear(y.to(x.scalar_type()).mul(g), out_);
  }

 private:
  // The first of these layers leaves its values for those after it.
  at::Tensor values(const at::Tensor& x, RecurrentPass& pass) {
    const at::Tensor v = linear(x, v_).to(at::kFloat);
    at::Tensor first = v;
    if (Shared* shared = pass.call().shared) first = shared->emplace("rwkv7.v", v).first->second;
    if (!value_.base.defined()) return v;
    if (first.sizes() != v.sizes()) {
      throw UsageError("mixer rwkv7: values of width {} follow a first layer's of {}", v.size(-1),
                       first.size(-1));
    }
    return v.add(first.sub(v).mul(at::sigmoid(value_(x, false))));
  }

  int64_t heads_;
  Weight r_, k_, v_, out_, gate_down_, gate_up_;
  LowRank decay_, rate_, value_;  // value_: undefined in a model's first layer
  at::Tensor mix_, removal_, key_rate_, bonus_, norm_, norm_bias_;
  size_t state_, shift_;
};

// The channel mix: relu(Wk (x + d mu))^2 Wv.
class Rwkv7Channel : public RecurrentLayer {
 public:
  explicit Rwkv7Channel(const Rwkv7Options& options) : RecurrentLayer("rwkv7 (channel mix)") {
    const int64_t c = options.hidden();
    params_.tensor(mix_, "mix", shift_weights(c));
    params_.matrix(key_, "key.weight", options.intermediate, c);
    params_.matrix(value_, "value.weight", c, options.intermediate);
    shift_ = history("shift", c, 1);
  }

  Traits traits() const override { return recurrent_traits(true); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const at::Tensor d = pass.previous(shift_, x).sub(x);
    return linear(at::relu(linear(x.add(d.mul(mix_)), key_)).square(), value_);
  }

 private:
  at::Tensor mix_;
  Weight key_, value_;
  size_t shift_;
};

}  // namespace

void register_rwkv7(Registry& registry) {
  Mechanism m;
  m.card.id = "rwkv7";
  m.card.equations =
      "S_t = diag(exp(log_decay_t)) S_{t-1} - (a_t . kap_t)^T (kap_t S_{t-1}) + k_t^T v_t\n"
      "out_t = scale r_t S_t";
  m.card.state_note = "and the last input, that of the channel mix too";
  set_scan_row(m.card,
               {token("kap", "B,T,H,K", Sample::kUnit), gate("a", "B,T,H,K", Sample::kGate),
                gate("log_decay", "B,T,H,K", Sample::kLogDecay)},
               Sample::kKey, "r");
  m.card.apply.settings = {scale_setting("1"), chunk_setting()};
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) {
    // a . kap is not rounded again: the recurrence runs in float32 on the rounded r, k, v, kap.
    const at::ScalarType type = call.get("v").scalar_type();
    const at::ScalarType compute = type == at::kDouble ? at::kDouble : at::kFloat;
    ScanParts parts;
    parts.q = call.get("r").to(compute);
    parts.k = call.get("k").to(compute);
    parts.v = call.get("v").to(compute);
    parts.in.r = call.get("kap").to(compute);
    parts.in.p = parts.in.r.mul(call.get("a")).neg();
    NamedTensors result = scan_core(call, parts);
    result["out"] = result["out"].to(type);
    return result;
  };
  m.layer = [](const LayerConfig& config) { return std::make_unique<Rwkv7Layer>(config); };
  add_channel(m.card.id, [](const LayerConfig& config) -> std::unique_ptr<Layer> {
    const Rwkv7Options options(config);
    return options.channel_mix ? std::make_unique<Rwkv7Channel>(options) : nullptr;
  });
  registry.add(std::move(m));
}

}  // namespace heed::mixer
