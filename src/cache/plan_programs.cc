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
      if (program.kind == Program::Kind::kWindow && program.comp.count > 1) {
        throw UsageError(
            "program \"{}\" has {} compensation tokens; the caches keep one, the mean of what was "
            "dropped: set \"count\" to 1",
            program.id, program.comp.count);
      }
      HeadProgram head;
      if (program.kind == Program::Kind::kWindow) {
        head.window = window_length(program, capacity);
        head.sinks = program.sink;
        if (program.comp.count == 1) {
          head.dropped = program.comp.weight == "1" ? Dropped::kMeanAsOne : Dropped::kMean;
        }
      }
      out.heads.back().push_back(head);
    }
  }
  return out;
}

}  // namespace heed
