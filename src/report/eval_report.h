// What `heed eval` does: the dense model and, beside it, one plan, measured on the same texts,
// needles and recall samples at several lengths.
#pragma once

#include <string>
#include <vector>

#include "eval/workbench.h"
#include "io/json.h"
#include "io/progress.h"

namespace heed::report {

struct EvalOptions {
  std::vector<int64_t> lengths;  // empty: 4096, or the model's context where that is shorter
  int64_t texts = 2, documents = 3, needles = 8, samples = 4;
  int decode_steps = 16;
  uint64_t seed = 2;
  at::ScalarType kv_dtype = at::kHalf;
};

// {model, lengths: [{length, dense: {...}, plan: {...}}], ...}; `plan` null: dense alone. Every run
// has perplexity, recall with its bootstrap interval and by depth, key-value and associative
// recall, time to first token, decode latency, KV bytes. Throws UsageError for text that is too
// short.
Json run_eval(const eval::Workbench& bench, const std::vector<std::string>& files,
              const Programs* plan, const EvalOptions& options, Progress& progress = no_progress());

std::string eval_table(const Json& report);

}  // namespace heed::report
