// From a plan file to what the caches run.
#pragma once

#include "cache/plan/plan_file.h"
#include "cache/program.h"

namespace heed {

// Every window as a number of tokens at the declared capacity (0: the plan's largest length, else
// 4096). Throws UsageError for a program that the caches do not run (compensation tokens).
Programs resolve_programs(const Plan& plan, int64_t capacity = 0);

}  // namespace heed
