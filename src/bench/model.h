// `heed bench model`: prefill and decoding of a whole model, dense and under a plan, alternately.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "bench/record.h"
#include "cache/program.h"
#include "io/progress.h"
#include "model/decoder.h"

namespace heed::bench {

struct ModelOptions {
  std::string name;                    // of the model in the records
  const Programs* programs = nullptr;  // null: dense alone
  std::string plan;                    // name of the plan in the records
  int64_t context = 4096;
  at::ScalarType kv_dtype = at::kHalf;
  int rounds = 3;  // each: read the context and decode `steps` tokens, dense and with the plan
  int steps = 16;
  int64_t batch = 1;  // above 1: also decode so many sequences side by side (batch.h)
  std::vector<std::string> peers = {"transformers", "llama.cpp"};
  bool quick = false;  // small measurement of the machine, one round
};

// Peers: "transformers" is timed in turn where there is a Python that has it (.venv-interop of the
// source folder, or HEED_BENCH_PYTHON); "llama.cpp" is listed with a reason.
// Records `generate` prefill and decode, and `softmax-decode` decode (the attention calls of all
// layers alone); those of the plan have the dense model as a peer. Throws UsageError for a context
// that the model does not have and for an unknown peer, Error where scores are wrong beyond the
// bound of docs/bench.md.
Json run_model(const Decoder& model, const ModelOptions& options,
               Progress& progress = no_progress());

}  // namespace heed::bench
