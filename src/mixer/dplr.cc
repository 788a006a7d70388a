// General diagonal-plus-low-rank recurrence: every delta rule is a setting of it. The low-rank term
// reads the state before its decay, the query reads after the write. Chunked form: spec "Shared
// algorithms" E2; the WY representation of Bischof & Van Loan, as in arXiv 2406.06484.
#include <ATen/ATen.h>

#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {}  // namespace

void register_dplr(Registry& registry) {
  Mechanism m;
  m.card.id = "dplr";
  m.card.equations =
      "S_t = diag(a_t) S_{t-1} + p_t^T (r_t S_{t-1}) + k_t^T v_t\nout_t = scale q_t S_t";
  set_scan_row(m.card,
               {token("p", "B,T,H,K", Sample::kCorrection), token("r", "B,T,H,K", Sample::kUnit),
                gate("log_decay", "B,T,H,K", Sample::kLogDecay, true)});
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) { return scan_core(call); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
