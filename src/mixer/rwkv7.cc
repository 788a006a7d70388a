// RWKV-7: a channel decay, and a low-rank term that takes out of the state what a removal key
// `kap` reads from it, at the rate `a` per channel. Peng et al., "RWKV-7 Goose with Expressive
// Dynamic State Evolution", arXiv 2503.14456 (section 3, eq. 17).
#include <ATen/ATen.h>

#include "mixer/common/scan_core.h"

namespace heed::mixer {

void register_rwkv7(Registry& registry) {
  Mechanism m;
  m.card.id = "rwkv7";
  m.card.equations =
      "S_t = diag(exp(log_decay_t)) S_{t-1} - (a_t . kap_t)^T (kap_t S_{t-1}) + k_t^T v_t\n"
      "out_t = scale r_t S_t";
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
  registry.add(std::move(m));
}

}  // namespace heed::mixer
