// Mamba: a diagonal state-space layer whose step size, input map and output map depend on the
// token. Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv
// 2312.00752 (algorithm 2; the input is discretised by dt B, as in the authors' code).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"
#include "op/ewscan.h"

namespace heed::mixer {
namespace {

at::Tensor grouped(const at::Tensor& x) { return x.dim() == 3 ? x.unsqueeze(2) : x; }

NamedTensors mamba_core(const CoreCall& call) {
  op::SelectiveTensors x;
  x.x = call.get("x");
  x.dt = call.get("dt");
  x.A = call.get("A");
  x.B = grouped(call.get("B"));
  x.C = grouped(call.get("C"));
  x.D = call.get("D");
  x.z = call.get("z");
  x.dt_bias = call.get("dt_bias");
  x.initial_state = call.get("initial_state");
  const op::SelectiveOptions options = {call.settings.flag("dt_softplus")};
  const at::Tensor offsets = call.get("cu_seqlens");
  x = call.form == "naive"       ? op::selective_scan_naive(x, options, offsets)
      : call.form == "recurrent" ? op::selective_scan_steps(x, options, offsets)
                                 : op::selective_scan(x, options, offsets);
  return {{"out", x.out}, {"final_state", x.final_state}};
}

// x, z = u Win; x = silu(conv(x) + b); r, B, C = x Wx; y = (scan . silu(z)) Wout with dt = r Wdt +
// bias before its softplus and A = -exp(A_log). Parameters have the names and shapes of
// `transformers`.
class MambaLayer : public RecurrentLayer {
 public:
  explicit MambaLayer(const LayerConfig& config) : RecurrentLayer("mamba") {
    LayerOptions options("mamba", config);
    const int64_t c = options.hidden();
    inner_ = options.integer("expand", 2) * c;
    size_ = options.integer("state", 16);
    rank_ = options.integer("dt_rank", (c + 15) / 16);
    const int64_t taps = options.integer("conv", 4);
    options.close();
    params_.matrix(in_, "in_proj.weight", 2 * inner_, c);
    params_.tensor(taps_, "conv1d.weight", init_conv(inner_, taps).unsqueeze(1));
    params_.tensor(conv_bias_, "conv1d.bias", at::zeros({inner_}, init_options()));
    params_.matrix(maps_, "x_proj.weight", rank_ + 2 * size_, inner_);
    const double bound = 1.0 / std::sqrt(static_cast<double>(rank_));
    params_.matrix(step_, "dt_proj.weight", init_uniform({inner_, rank_}, bound));
    params_.tensor(dt_bias_, "dt_proj.bias", init_dt_bias(inner_));
    params_.tensor(a_log_, "A_log",
                   at::arange(1, size_ + 1, init_options()).log().expand({inner_, size_}).clone());
    params_.tensor(skip_, "D", at::ones({inner_}, init_options()));
    params_.matrix(out_, "out_proj.weight", c, inner_);
    state_ = fixed("state", {1, inner_, size_});
    conv_ = history("conv", inner_, taps - 1);
    token_flops_ = 9 * inner_ * size_;
  }

  Traits traits() const override { return recurrent_traits(false); }

 protected:
  at::Tensor mix(const at::Tensor& u, RecurrentPass& pass) override {
    using X = op::SelectiveTensors;
    const auto xz = linear(u, in_).chunk(2, -1);
    X x;
    x.x = pass.short_conv(conv_, xz[0], taps_.squeeze(1), conv_bias_);
    x.z = xz[1];
    const auto maps = linear(x.x, maps_).split_with_sizes({rank_, size_, size_}, -1);
    x.dt = linear(maps[0], step_).to(at::kFloat);
    x.dt_bias = dt_bias_.to(at::kFloat);
    x.A = at::exp(a_log_.to(at::kFloat)).neg();
    x.B = grouped(maps[1]);
    x.C = grouped(maps[2]);
    x.D = skip_.to(at::kFloat);
    const op::SelectiveOptions options = {.dt_softplus = 1};
    const at::Tensor y = pass.advance<X>(
        x, {{state_, &X::initial_state, &X::final_state}},
        [&](X& t, const at::Tensor& pack) { t = op::selective_scan(t, options, pack); },
        [&](X& t) { t.out = op::selective_scan_step(t, options); });
    return linear(y, out_);
  }

 private:
  int64_t inner_, size_, rank_;
  Weight in_, maps_, step_, out_;
  at::Tensor taps_, conv_bias_, dt_bias_, a_log_, skip_;
  size_t state_, conv_;
};

}  // namespace

void register_mamba(Registry& registry) {
  Mechanism m;
  m.card.id = "mamba";
  m.card.equations =
      "d_t = softplus(dt_t + dt_bias)\nh_t = exp(d_t A) . h_{t-1} + (d_t x_t) B_t\n"
      "out_t = (h_t C_t + D x_t) . silu(z_t)";
  m.card.state_size = "E N";
  m.card.state_note = "and 3 inputs of the convolution";
  m.card.try_line =
      "heed apply mamba --in IN.safetensors --out OUT.safetensors --set dt_softplus=true";
  m.card.apply.inputs = {token("x", "B,T,E"),
                         gate("dt", "B,T,E", Sample::kStep),
                         gate("A", "E,N", Sample::kNegative),
                         token("B", "B,T,N|B,T,G,N", Sample::kKey),
                         token("C", "B,T,N|B,T,G,N"),
                         gate("D", "E", Sample::kNormal, true),
                         token("z", "B,T,E").maybe(),
                         gate("dt_bias", "E", Sample::kStep, true),
                         gate("initial_state", "Ns,E,N", Sample::kNormal, true),
                         offsets()};
  m.card.apply.settings = {flag_setting("dt_softplus", false), chunk_setting()};
  m.card.apply.outputs = {output("out", "B,T,E"), output("final_state", "Ns,E,N")};
  m.card.apply.forms = {"chunked", "naive", "recurrent"};
  m.card.tests.heads = {};
  m.card.tests.sizes = {{"E", 6}, {"N", 5}, {"G", 2}};
  m.card.tests.large = {{"E", 64}, {"N", 16}, {"G", 1}};
  m.traits = recurrent_traits(false);
  m.core = mamba_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<MambaLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
