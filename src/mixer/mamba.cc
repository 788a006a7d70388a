// Mamba: a diagonal state-space layer whose step size, input map and output map depend on the
// token. Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv
// 2312.00752 (algorithm 2; the input is discretised by dt B, as in the authors' code).
#include <ATen/ATen.h>

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

}  // namespace

void register_mamba(Registry& registry) {
  Mechanism m;
  m.card.id = "mamba";
  m.card.equations =
      "d_t = softplus(dt_t + dt_bias)\nh_t = exp(d_t A) . h_{t-1} + (d_t x_t) B_t\n"
      "out_t = (h_t C_t + D x_t) . silu(z_t)";
  m.card.state_size = "E N";
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
  registry.add(std::move(m));
}

}  // namespace heed::mixer
