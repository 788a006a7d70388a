// What `heed eval` does: the dense model and, beside it, one plan, measured on the same texts and
// questions at several lengths.
#pragma once

#include <string>
#include <vector>

#include "eval/workbench.h"
#include "io/json.h"
#include "io/progress.h"

namespace heed::report {

// A text file and the name of its figure: the file's name without its ending (and without .xz).
struct NamedFile {
  std::string path, name;
};
NamedFile named_file(const std::string& path, const std::string& shown);

struct EvalOptions {
  std::vector<int64_t> lengths;    // empty: 4096, or the model's context where that is shorter
  int64_t texts = 2;               // windows of each file
  int64_t documents = 3;           // with questions of each kind
  int64_t questions = 4;           // of each kind, a document
  std::vector<std::string> kinds;  // of Heed's own tasks; empty: all of the evaluation's
  std::string tasks;               // a file of tasks that takes their place
  int decode_steps = 16;
  uint64_t seed = 2;
  at::ScalarType kv_dtype = at::kHalf;
};

// {model, lengths: [{length, texts, tasks, kv_bytes, headline, dense: {...}, plan: {...}}], ...};
// with one length `texts`, `tasks` and `kv_bytes` stand at the top too. `plan` null: dense alone,
// and none of the plan's keys. Throws UsageError for text that is too short, for two files of one
// name and for a kind that does not exist.
Json run_eval(const eval::Workbench& bench, const std::vector<NamedFile>& files,
              const Programs* plan, const EvalOptions& options, Progress& progress = no_progress());

std::string eval_table(const Json& report);

}  // namespace heed::report
