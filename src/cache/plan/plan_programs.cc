// See plan_programs.h.
#include "cache/plan/plan_programs.h"

#include <algorithm>
#include <optional>

namespace heed {

Programs resolve_programs(const Plan& plan, int64_t capacity) {
  if (capacity <= 0) {
    capacity =
        plan.lengths.empty() ? 4096 : *std::max_element(plan.lengths.begin(), plan.lengths.end());
  }
  Programs out;
  out.dense_prefill = plan.prefill == Plan::Prefill::kDense;
  std::vector<std::optional<HeadProgram>> resolved(plan.programs.size());
  for (size_t l = 0; l < plan.heads.size(); ++l) {
    const std::vector<int>& row = plan.heads[l];
    std::vector<HeadProgram>& heads = out.heads.emplace_back();
    for (const int index : row) {
      std::optional<HeadProgram>& head = resolved[static_cast<size_t>(index)];
      const Program& program = plan.programs[static_cast<size_t>(index)];
      if (!head) {
        head = kind_of(program.entry, program.id).resolve(program.entry, capacity, program.id);
      }
      heads.push_back(*head);
      if (head->in_few_bits() && !plan.centres.empty()) {
        heads.back().centre = plan.centres[l][heads.size() - 1];
      }
    }
  }
  return out;
}

}  // namespace heed
