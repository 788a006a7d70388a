// Kimi Delta Attention: the gated delta rule with a decay per key channel; the correction reads the
// state after its decay. Kimi Team, "Kimi Linear", arXiv 2510.26692 (eq. 1).
#include "mixer/common/scan_core.h"

namespace heed::mixer {

void register_kda(Registry& registry) {
  Mechanism m;
  m.card.id = "kda";
  m.card.equations =
      "S' = diag(a_t) S_{t-1}\nS_t = S' + beta_t k_t^T (v_t - k_t S')\nout_t = scale q_t S_t";
  set_scan_row(
      m.card,
      {gate("beta", "B,T,H", Sample::kGate), gate("log_decay", "B,T,H,K", Sample::kLogDecay)},
      Sample::kUnit);
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) { return scan_core(call); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
