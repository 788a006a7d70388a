// See plan_programs.h.
#include "cache/plan_programs.h"

#include "io/error.h"

namespace heed {

Programs resolve_programs(const Plan& plan, int64_t capacity) {
  if (capacity <= 0) {
    capacity =
        plan.lengths.empty() ? 4096 : *std::max_element(plan.lengths.begin(), plan.lengths.end());
  }
  Programs out;
  out.dense_prefill = plan.prefill == Plan::Prefill::kDense;
  for (size_t l = 0; l < plan.heads.size(); ++l) {
    out.heads.emplace_back();
    for (size_t h = 0; h < plan.heads[l].size(); ++h) {
      const Program& program = plan.program(l, h);
      if (program.kind == Program::Kind::kWindow && program.comp.count > 0) {
        throw UsageError(
            "program \"{}\" has compensation tokens, which the caches do not keep; leave \"comp\" "
            "out",
            program.id);
      }
      HeadProgram head;
      if (program.kind == Program::Kind::kWindow) {
        head.window = window_length(program, capacity);
        head.sinks = program.sink;
      }
      out.heads.back().push_back(head);
    }
  }
  return out;
}

}  // namespace heed
