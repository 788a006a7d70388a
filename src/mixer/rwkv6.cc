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
  explicit Rwkv6Layer(const LayerConfig& config) {
    LayerOptions options("rwkv6", config);
    heads_ = options.heads();
    dim_ = options.head_width("expand", 1.0);
    mix_rank_ = options.integer("mix_rank", 32);
    decay_rank_ = options.integer("decay_rank", 64);
    options.close();
    hidden_ = options.hidden();
    const int64_t c = hidden_, width = heads_ * dim_;
    for (const char* name : {"r_proj.weight", "k_proj.weight", "v_proj.weight", "g_proj.weight"}) {
      parameters_[name] = init_projection(width, c);
    }
    parameters_["o_proj.weight"] = init_projection(c, width);
    // Earlier channels look further back, as in the published initialisation.
    const at::Tensor channel = at::arange(c, init_options()).div(static_cast<double>(c));
    parameters_["mix.base"] = at::ones({c}, init_options()).sub(channel);
    parameters_["mix.bias"] = at::ones({c}, init_options()).sub(channel).expand({5, c}).clone();
    parameters_["mix.down.weight"] =
        at::empty({5 * mix_rank_, c}, init_options()).uniform_(-1e-4, 1e-4);
    parameters_["mix.up"] = at::empty({5, c, mix_rank_}, init_options()).uniform_(-1e-2, 1e-2);
    const at::Tensor n = at::arange(width, init_options()).div(std::max<double>(1.0, width - 1.0));
    parameters_["decay.base"] = n.pow(0.7).mul(5.0).sub(6.0);
    parameters_["decay.down.weight"] =
        at::empty({decay_rank_, c}, init_options()).uniform_(-1e-4, 1e-4);
    parameters_["decay.up.weight"] =
        at::empty({width, decay_rank_}, init_options()).uniform_(-1e-2, 1e-2);
    parameters_["bonus"] = at::zeros({heads_, dim_}, init_options());
    parameters_["norm.weight"] = at::ones({width}, init_options());
    parameters_["norm.bias"] = at::zeros({width}, init_options());
  }

  at::Tensor forward(const at::Tensor& x, Call& call) override {
    RecurrentPass pass("rwkv6", x, call);
    const int64_t b = x.size(0), t = x.size(1);
    const at::Tensor d = pass.previous("shift", x).sub(x);
    const at::Tensor low =
        at::tanh(project(x.add(d.mul(parameter("mix.base"))), parameter("mix.down.weight")))
            .view({b, t, 5, mix_rank_});
    const auto mixed = [&](int64_t z) {
      const at::Tensor m = at::linear(low.select(2, z), parameter("mix.up").select(0, z))
                               .add(parameter("mix.bias").select(0, z));
      return x.add(d.mul(m));
    };
    const at::Tensor r = heads(project(mixed(0), parameter("r_proj.weight")), heads_);
    const at::Tensor w = project(at::tanh(project(mixed(1), parameter("decay.down.weight"))),
                                 parameter("decay.up.weight"))
                             .to(at::kFloat)
                             .add(parameter("decay.base").to(at::kFloat));
    const at::Tensor k = heads(project(mixed(2), parameter("k_proj.weight")), heads_);
    const at::Tensor v = heads(project(mixed(3), parameter("v_proj.weight")), heads_);
    const at::Tensor g = at::silu(project(mixed(4), parameter("g_proj.weight")));
    op::ScanInputs in;
    in.log_decay = heads(at::exp(w).neg(), heads_);
    in.bonus = parameter("bonus").to(at::kFloat);
    op::ScanOptions options;
    options.read_before = true;
    const at::Tensor o = pass.scan("state", r, k, v, in, options);
    pass.finish();
    const at::Tensor f = o.to(at::kFloat);
    const at::Tensor centred = f.sub(f.mean(-1, true));
    const at::Tensor unit = centred.mul(at::rsqrt(centred.square().mean(-1, true).add(64e-5)));
    const at::Tensor normed = unit.flatten(2)
                                  .mul(parameter("norm.weight").to(at::kFloat))
                                  .add(parameter("norm.bias").to(at::kFloat));
    return project(normed.to(x.scalar_type()).mul(g), parameter("o_proj.weight"));
  }

  int64_t flops(int64_t tokens) const override {
    return projection_flops(parameters_, tokens) + scan_flops(tokens, heads_, dim_, dim_, false);
  }
  Traits traits() const override { return recurrent_traits(true); }

 protected:
  std::map<std::string, std::vector<int64_t>> state_shapes() const override {
    return {{"state", {1, heads_, dim_, dim_}}, {"shift", {1, hidden_}}};
  }

 private:
  int64_t hidden_, heads_, dim_, mix_rank_, decay_rank_;
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
