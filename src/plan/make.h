// `heed plan` in one call: a plan file by any method, searched on one text.
#pragma once

#include <string>
#include <vector>

#include "cache/plan/plan_file.h"
#include "eval/workbench.h"
#include "io/progress.h"
#include "plan/search.h"

namespace heed::plan {

struct MakeOptions {
  double budget = 0.3;
  Method method = Method::kHeed;
  // Searched at the largest; the budget holds at each. Empty: 4096, or the model's context where
  // that is shorter.
  std::vector<int64_t> lengths;
  std::vector<int64_t> windows;  // grid; empty: powers of two and their midpoints from 32 on
  int64_t sinks = 16;
  std::vector<int> bits = {8, 6, 5, 4, 3, 2};  // that keys and values may be kept in; empty: 16
  int64_t texts = 2, checks = 1;               // scored, and run with joint candidates
  int candidates = 3, repairs = 2;
  // Scores more texts, and measures every head alone before allocating: hours on a CPU, minutes on
  // a GPU.
  bool thorough = false;
  int steps = 40;  // of DuoAttention's gates
  uint64_t seed = 1;
  at::ScalarType kv_dtype = at::kHalf;
  std::string records;  // SQLite file that keeps scores for another budget; empty: none
};

struct Made {
  Plan plan;
  Programs programs;
  int64_t length = 0;  // the largest of the lengths, chosen or asked for
  double kept = 0;     // share of the dense cache there
};

// `files`: text to search on. Throws UsageError for a budget, length or text that does not fit.
Made make_plan(const eval::Workbench& bench, const std::vector<std::string>& files,
               const MakeOptions& options, Progress& progress = no_progress());

}  // namespace heed::plan
