// `heed apply model`: a whole model on given ids (docs/apply.md, "Whole models").
#pragma once

#include "model/decoder.h"

namespace heed {

struct ApplyModelOptions {
  bool cache = false;   // the first `prefill` tokens in one pass, the others one at a time
  int64_t prefill = 0;  // 0: half of the tokens, at least 1
  int64_t greedy = 0;   // tokens to append
  const Programs* programs = nullptr;
};

// input_ids int64 [B, T], T >= 1 -> "logits" float32 [B, T, V] and, with greedy, "tokens" int64 [B,
// greedy]. The caches hold the type of the weights. Throws UsageError naming what does not fit.
NamedTensors apply_model(const Decoder& model, const at::Tensor& input_ids,
                         const ApplyModelOptions& options);

}  // namespace heed
