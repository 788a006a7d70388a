// Mamba-2: a state-space model whose state matrix is one decaying scalar per head and token.
// Dao & Gu, "Transformers are SSMs", arXiv 2405.21060 (recurrence: eq. 16 with scalar A; block:
// section 7).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// [B,T,G,K] -> [B,T,H,K]: head h uses group h div (H/G).
at::Tensor spread(const at::Tensor& x, int64_t heads) {
  const int64_t groups = x.size(2);
  return groups == heads ? x : x.repeat_interleave(heads / groups, 2);
}

NamedTensors core(const CoreCall& call) {
  const at::Tensor x = call.get("x"), bias = call.get("dt_bias");
  const int64_t heads = x.size(2), groups = call.get("B").size(2);
  if (groups < 1 || heads % groups != 0) {
    throw UsageError("mamba2: tensor B has {} groups, expected a divisor of the {} heads of x",
                     groups, heads);
  }
  const at::ScalarType type = x.scalar_type();
  const at::ScalarType compute = type == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor dt = call.get("dt");
  if (bias.defined()) dt = dt.add(bias);
  if (call.settings.flag("dt_softplus", false)) dt = at::softplus(dt);
  ScanParts parts;
  parts.in.log_decay = dt.mul(call.get("A"));
  parts.scale = 1.0;
  // dt x is not rounded again: the recurrence runs in float32 on the rounded x, B and C.
  parts.q = spread(call.get("C").to(compute), heads);
  parts.k = spread(call.get("B").to(compute), heads);
  parts.v = x.to(compute).mul(dt.unsqueeze(-1));
  NamedTensors result = scan_core(call, parts);
  at::Tensor& out = result["out"];
  if (call.get("D").defined()) out = out.add(x.to(compute).mul(call.get("D").unsqueeze(-1)));
  out = out.to(type);
  return result;
}

// z, x, B, C, dt = x Win; x, B, C = silu(conv(.)); y = RMSNorm(out . silu(z)) Wout.
class Mamba2Layer : public RecurrentLayer {
 public:
  explicit Mamba2Layer(const LayerConfig& config) {
    LayerOptions options("mamba2", config);
    const int64_t c = options.hidden();
    const int64_t expand = options.integer("expand", 2);
    inner_ = expand * c;
    head_ = options.integer("head_dim", inner_ % 64 == 0 ? 64 : inner_ / options.heads());
    state_ = options.integer("state", 128);
    groups_ = options.integer("groups", 1);
    taps_ = options.integer("conv", 4);
    options.close();
    if (head_ < 1 || inner_ % head_ != 0 || (inner_ / head_) % groups_ != 0) {
      throw UsageError(
          "mixer mamba2: inner width {} must be a multiple of head_dim {}, and the heads one of "
          "groups {}",
          inner_, head_, groups_);
    }
    heads_ = inner_ / head_;
    const int64_t conv_width = inner_ + 2 * groups_ * state_;
    parameters_["in_proj.weight"] = init_projection(inner_ + conv_width + heads_, c);
    parameters_["conv1d.weight"] = init_conv(conv_width, taps_);
    parameters_["conv1d.bias"] = at::zeros({conv_width}, init_options());
    parameters_["A_log"] = at::log(at::empty({heads_}, init_options()).uniform_(1.0, 16.0));
    parameters_["dt_bias"] = init_dt_bias(heads_);
    parameters_["D"] = at::ones({heads_}, init_options());
    parameters_["norm.weight"] = at::ones({inner_}, init_options());
    parameters_["out_proj.weight"] = init_projection(c, inner_);
  }

  at::Tensor forward(const at::Tensor& x, Call& call) override {
    RecurrentPass pass("mamba2", x, call);
    const int64_t gn = groups_ * state_;
    const auto parts = project(x, parameter("in_proj.weight"))
                           .split_with_sizes({inner_, inner_ + 2 * gn, heads_}, -1);
    const at::Tensor xbc = at::silu(
        pass.short_conv("conv", parts[1], parameter("conv1d.weight"), parameter("conv1d.bias")));
    const auto tokens = xbc.split_with_sizes({inner_, gn, gn}, -1);
    const at::Tensor xs = tokens[0].reshape({x.size(0), x.size(1), heads_, head_}).to(at::kFloat);
    const auto grouped = [&](const at::Tensor& u) {
      return spread(u.reshape({x.size(0), x.size(1), groups_, state_}).to(at::kFloat), heads_);
    };
    const at::Tensor dt =
        at::softplus(parts[2].to(at::kFloat).add(parameter("dt_bias").to(at::kFloat)));
    op::ScanInputs in;
    in.log_decay = dt.mul(at::exp(parameter("A_log").to(at::kFloat)).neg());
    at::Tensor y = pass.scan("state", grouped(tokens[2]), grouped(tokens[1]),
                             xs.mul(dt.unsqueeze(-1)), in, {});
    pass.finish();
    y = y.add(xs.mul(parameter("D").to(at::kFloat).unsqueeze(-1))).flatten(2).to(x.scalar_type());
    return project(rms_norm(y.mul(at::silu(parts[0])), parameter("norm.weight"), 1e-5),
                   parameter("out_proj.weight"));
  }

  int64_t flops(int64_t tokens) const override {
    return projection_flops(parameters_, tokens) + scan_flops(tokens, heads_, state_, head_, false);
  }
  Traits traits() const override { return recurrent_traits(true); }

 protected:
  std::map<std::string, std::vector<int64_t>> state_shapes() const override {
    return {{"state", {1, heads_, state_, head_}},
            {"conv", {taps_ - 1, inner_ + 2 * groups_ * state_}}};
  }

 private:
  int64_t inner_, heads_, head_, state_, groups_, taps_;
};

}  // namespace

void register_mamba2(Registry& registry) {
  Mechanism m;
  m.card.id = "mamba2";
  m.card.equations =
      "d_t = softplus(dt_t + dt_bias)\nS_t = exp(d_t A) S_{t-1} + B_t^T (d_t x_t)\nout_t = C_t S_t "
      "+ D x_t";
  m.card.try_line =
      "heed apply mamba2 --in IN.safetensors --out OUT.safetensors --set dt_softplus=true";
  m.card.state_note = "and 3 inputs of the convolution";
  set_scan_row(m.card, {});
  m.card.apply.inputs = {token("x", "B,T,H,V"),
                         gate("dt", "B,T,H", Sample::kStep),
                         gate("A", "H", Sample::kNegative),
                         token("B", "B,T,G,K", Sample::kKey),
                         token("C", "B,T,G,K"),
                         gate("D", "H", Sample::kNormal, true),
                         gate("dt_bias", "H", Sample::kStep, true),
                         initial_state(),
                         offsets()};
  m.card.apply.settings = {flag_setting("dt_softplus", false), chunk_setting()};
  m.traits = recurrent_traits(false);
  m.core = core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<Mamba2Layer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
