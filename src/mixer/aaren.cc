// Aaren: softmax attention with one learned query per head, computed for all prefixes by a scan of
// (m, u, w). Feng et al., "Attention as an RNN", arXiv 2405.13956 (section 3.2).
#include <ATen/ATen.h>

#include "mixer/common/scan_core.h"
#include "op/ewscan.h"

namespace heed::mixer {
namespace {

NamedTensors aaren_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k");
  const at::ScalarType type = k.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const double scale = scan_options(call, q).scale;
  op::LseTensors x;
  x.score = at::einsum("bthk,hk->bth", {k.to(type), q.to(type)}).mul(scale);
  x.v = call.get("v");
  x.initial_m = call.get("initial_m");
  x.initial_u = call.get("initial_u");
  x.initial_w = call.get("initial_w");
  x = call.form == "naive"       ? op::lse_scan_naive(x)
      : call.form == "recurrent" ? op::lse_scan_steps(x)
                                 : op::lse_scan(x);
  return {{"out", x.out}, {"final_m", x.final_m}, {"final_u", x.final_u}, {"final_w", x.final_w}};
}

}  // namespace

void register_aaren(Registry& registry) {
  Mechanism m;
  m.card.id = "aaren";
  m.card.equations =
      "s_t = scale q.k_t\nm_t = max(m_{t-1}, s_t)\nu_t = e^{m_{t-1}-m_t} u_{t-1} + e^{s_t-m_t} "
      "v_t\n"
      "w_t = e^{m_{t-1}-m_t} w_{t-1} + e^{s_t-m_t}\nout_t = u_t / w_t";
  m.card.state_size = "H (V+2)";
  m.card.apply.inputs = {token("q", "H,K"),
                         token("k", "B,T,H,K"),
                         token("v", "B,T,H,V"),
                         gate("initial_m", "B,H").together("state"),
                         gate("initial_u", "B,H,V").together("state"),
                         gate("initial_w", "B,H", Sample::kStep).together("state")};
  m.card.apply.settings = {scale_setting(), chunk_setting()};
  m.card.apply.outputs = {output("out", "B,T,H,V"), output("final_m", "B,H"),
                          output("final_u", "B,H,V"), output("final_w", "B,H")};
  m.card.apply.forms = {"chunked", "naive", "recurrent"};
  m.traits = recurrent_traits(false);
  m.core = aaren_core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
