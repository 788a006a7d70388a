// Timings of whole mechanisms: every form of a core beside its naive one, on inputs that its card
// makes, with the memory that each takes.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "io/json.h"
#include "io/progress.h"

namespace heed::bench {

struct MixerOptions {
  std::vector<std::string> ids;  // empty: all that are ready
  std::vector<int64_t> tokens = {2048, 4096};
  at::Device device = at::kCPU;
  bool quick = false;  // each form once or twice
};

// The records of docs/bench.md: one a mechanism, form and number of tokens, with the naive form as
// its peer; `skipped` has the reasons of those whose inputs cannot be made at a number of tokens,
// where no ids are given. UsageError for an id that is not ready, or that cannot be run so.
Json run_mixers(const MixerOptions& options, Progress& progress);

}  // namespace heed::bench
