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

NamedTensors mamba2_core(const CoreCall& call) {
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
  explicit Mamba2Layer(const LayerConfig& config) : RecurrentLayer("mamba2") {
    LayerOptions options("mamba2", config);
    const int64_t c = options.hidden();
    inner_ = options.integer("expand", 2) * c;
    head_ = options.integer("head_dim", inner_ % 64 == 0 ? 64 : inner_ / options.heads());
    size_ = options.integer("state", 128);
    groups_ = options.integer("groups", 1);
    const int64_t taps = options.integer("conv", 4);
    options.close();
    if (head_ < 1 || inner_ % head_ != 0 || (inner_ / head_) % groups_ != 0) {
      throw UsageError(
          "mixer mamba2: inner width {} must be a multiple of head_dim {}, and the heads one of "
          "groups {}",
          inner_, head_, groups_);
    }
    heads_ = inner_ / head_;
    const int64_t conv_width = inner_ + 2 * groups_ * size_;
    params_.matrix(in_, "in_proj.weight", inner_ + conv_width + heads_, c);
    params_.tensor(taps_, "conv1d.weight", init_conv(conv_width, taps));
    params_.tensor(conv_bias_, "conv1d.bias", at::zeros({conv_width}, init_options()));
    params_.tensor(a_log_, "A_log",
                   at::log(at::empty({heads_}, init_options()).uniform_(1.0, 16.0)));
    params_.tensor(dt_bias_, "dt_bias", init_dt_bias(heads_));
    params_.tensor(skip_, "D", at::ones({heads_}, init_options()));
    params_.tensor(norm_, "norm.weight", at::ones({inner_}, init_options()));
    params_.matrix(out_, "out_proj.weight", c, inner_);
    state_ = fixed("state", {1, heads_, size_, head_});
    conv_ = history("conv", conv_width, taps - 1);
  }

  Traits traits() const override { return recurrent_traits(true); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const int64_t gn = groups_ * size_;
    const auto parts = linear(x, in_).split_with_sizes({inner_, inner_ + 2 * gn, heads_}, -1);
    const at::Tensor xbc = pass.short_conv(conv_, parts[1], taps_, conv_bias_);
    const auto tokens = xbc.split_with_sizes({inner_, gn, gn}, -1);
    const at::Tensor xs = tokens[0].reshape({x.size(0), x.size(1), heads_, head_}).to(at::kFloat);
    const auto grouped = [&](const at::Tensor& u) {
      return spread(u.reshape({x.size(0), x.size(1), groups_, size_}).to(at::kFloat), heads_);
    };
    const at::Tensor dt = at::softplus(parts[2].to(at::kFloat).add(dt_bias_.to(at::kFloat)));
    op::ScanInputs in;
    in.log_decay = dt.mul(at::exp(a_log_.to(at::kFloat)).neg());
    at::Tensor y =
        pass.scan(state_, grouped(tokens[2]), grouped(tokens[1]), xs.mul(dt.unsqueeze(-1)), in, {});
    y = y.add(xs.mul(skip_.to(at::kFloat).unsqueeze(-1))).flatten(2).to(x.scalar_type());
    return linear(rms_norm(y.mul(at::silu(parts[0])), norm_, 1e-5), out_);
  }

 private:
  int64_t inner_, heads_, head_, size_, groups_;
  Weight in_, out_;
  at::Tensor taps_, conv_bias_, a_log_, dt_bias_, skip_, norm_;
  size_t state_, conv_;
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
  m.core = mamba2_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<Mamba2Layer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
