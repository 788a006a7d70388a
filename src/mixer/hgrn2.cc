// HGRN2: gated linear attention whose input gate is tied to the forget gate, k = 1 - a. Qin et al.,
// "HGRN2: Gated Linear RNNs with State Expansion", arXiv 2404.07904 (eq. 5).
#include <ATen/ATen.h>

#include "mixer/common/scan_core.h"

namespace heed::mixer {

void register_hgrn2(Registry& registry) {
  Mechanism m;
  m.card.id = "hgrn2";
  m.card.equations = "S_t = diag(a_t) S_{t-1} + (1 - a_t)^T v_t\nout_t = scale q_t S_t";
  set_scan_row(m.card, {gate("log_decay", "B,T,H,K", Sample::kLogDecay)});
  std::erase_if(m.card.apply.inputs, [](const TensorSpec& spec) { return spec.name == "k"; });
  m.card.apply.settings = {scale_setting("1"), chunk_setting()};
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) {
    // 1 - a is not rounded: the recurrence runs in float32 on the rounded q and v.
    const at::ScalarType type = call.get("v").scalar_type();
    ScanParts parts;
    parts.k = at::expm1(call.get("log_decay")).neg();
    parts.q = call.get("q").to(parts.k.scalar_type());
    parts.v = call.get("v").to(parts.k.scalar_type());
    NamedTensors result = scan_core(call, parts);
    result["out"] = result["out"].to(type);
    return result;
  };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
