// The training loop: from a configuration to a model folder.
//
// The run folder holds config.toml (every key), tokenizer/, tokens/ (cached), checkpoints/,
// curve.csv (one row a logged step), report.json and, at the end, model/ in Hugging Face layout.
#pragma once

#include <cstdint>
#include <string>

#include "io/json.h"
#include "io/progress.h"
#include "train/config.h"

namespace heed::train {

struct TrainResult {
  std::string out;    // run folder
  std::string model;  // model folder; empty when the run stopped before its last step
  int64_t step = 0;   // steps done
  Json report;        // what report.json holds; null when the run stopped early
};

// Runs a configuration to its end, to train.minutes, or to Ctrl-C; the last two save a checkpoint,
// and Ctrl-C then throws Interrupted. With `resume` the newest checkpoint of the run folder is
// continued: on the same device and number of threads every later byte is what it would have been
// without the break (on CUDA: unless `nondeterministic`).
//
// Throws UsageError for a run folder that is in use (and no `resume`), for a configuration that
// differs from the checkpoint's in what makes the run (seed, text, shapes, rows); Error when the
// loss is no number any more: the checkpoints stay.
TrainResult train(const TrainConfig& config, bool resume, Progress& progress = no_progress());

}  // namespace heed::train
