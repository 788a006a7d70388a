// General diagonal-plus-low-rank recurrence: every delta rule is a setting of it. The low-rank term
// reads the state before its decay, the query reads after the write. Chunked form: spec "Shared
// algorithms" E2; the WY representation of Bischof & Van Loan, as in arXiv 2406.06484.
#include <ATen/ATen.h>

#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

NamedTensors core(const CoreCall& call) {
  op::ScanInputs in;
  in.p = call.get("p");
  in.r = call.get("r");
  in.log_decay = call.get("log_decay");
  in.initial_state = call.get("initial_state");
  in.cu_seqlens = call.get("cu_seqlens");
  const at::Tensor q = call.get("q");
  const auto [out, state] =
      run_scan(call.form, q, call.get("k"), call.get("v"), in, scan_options(call, q));
  return {{"out", out}, {"final_state", state}};
}

}  // namespace

void register_dplr(Registry& registry) {
  Mechanism m;
  m.card.id = "dplr";
  m.card.family = "recurrent";
  m.card.kind = "mixer";
  m.card.title = "Diagonal-plus-low-rank recurrence";
  m.card.paper = "arXiv 2406.06484, 2503.14456";
  m.card.equations =
      "S_t = diag(a_t) S_{t-1} + p_t^T (r_t S_{t-1}) + k_t^T v_t\nout_t = scale q_t S_t";
  m.card.patterns = "causal self";
  m.card.state_size = "H K V";
  m.card.try_line = "heed apply dplr --in IN.safetensors --out OUT.safetensors";
  m.card.apply.inputs = {token("q", "B,T,H,K"),
                         token("k", "B,T,H,K", Sample::kKey),
                         token("p", "B,T,H,K", Sample::kCorrection),
                         token("r", "B,T,H,K", Sample::kUnit),
                         token("v", "B,T,H,V"),
                         gate("log_decay", "B,T,H,K", Sample::kLogDecay, true),
                         initial_state(),
                         offsets()};
  m.card.apply.settings = {scale_setting(), chunk_setting()};
  m.card.apply.outputs = {output("out", "B,T,H,V"), output("final_state", "S,H,K,V")};
  m.card.apply.forms = {"chunked", "naive", "recurrent"};
  m.traits = recurrent_traits(true);
  m.core = core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
