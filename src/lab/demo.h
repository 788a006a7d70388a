// The whole loop on one model: measure heads, search plans at several budgets, run with them,
// measure again, beside shuffled plans as control. What `heed demo` does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/workbench.h"
#include "io/json.h"
#include "io/progress.h"

namespace heed::lab {

struct DemoOptions {
  std::string model = "smollm2";
  int64_t context = 4096;
  bool quick = false;
  std::vector<double> budgets;  // empty: 0.5, 0.3, 0.2 (quick: 0.3); the report's chosen plan is
                                // the one nearest 0.3
  int controls = -1;            // shuffled plans; negative: 3 (quick: 2)
  // Sizes; 0: by `quick`.
  int64_t search_texts = 0, check_texts = 0, eval_texts = 0, eval_documents = 0;
  int64_t needles = 8;  // a document
  int candidates = 0;   // 0: 2
  int repairs = -1;  // heads that the repair tries; -1: 2 for the chosen plan, none for the others
  uint64_t seed = 1;
  std::string out = "report";
  bool fresh = false;  // measures what an earlier run into `out` has measured already
  std::vector<std::string> search_files, test_files;  // empty: the books that come with Heed
  LoadOptions load;
  at::ScalarType kv_dtype = at::kHalf;
};

// Runs it and writes report.json, report.html and plan-BUDGET.json files into `out`. Returns the
// JSON. What an earlier run into `out` measured under the same key (lab/kept.h; the report's
// "key") is taken over, and its rows say so: "earlier" true, "measured" when. Falls back to the
// built-in model, saying so on stderr, where `smollm2` cannot be had.
Json run_demo(const DemoOptions& options, Progress& progress = no_progress());

// The table that people see.
std::string demo_table(const Json& report);

}  // namespace heed::lab
