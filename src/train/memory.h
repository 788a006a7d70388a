// The memory that a training run needs, told from its configuration before anything is allocated.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include "io/model_config.h"
#include "train/config.h"

namespace heed::train {

// Bytes, as doubles: absurd sizes do not overflow. Nothing here is more than a run takes.
struct MemoryNeed {
  double parameters = 0;  // their number
  double weights = 0;     // with sums of gradients and AdamW's moments: held all the time
  double gradients = 0;   // of one pass, when its backward pass is over
  double pass = 0;        // activations and logits of one pass, when its forward pass is over
  double rows = 0;        // tokens and targets of a step and of the next one
  double start = 0;       // on the CPU while a model for another device is made
};

// `dtype`: of the computation, float32 or bfloat16. Throws UsageError for sizes that no machine
// could hold.
MemoryNeed memory_need(const ModelConfig& model, const TrainConfig& config, at::ScalarType dtype);

// Throws UsageError, saying what is needed, what there is and which keys to change, where the need
// is larger than the machine's memory (`machine`) or, for a run on a GPU, than what is free there
// (`device`). 0: not known, not checked.
void check_memory(const MemoryNeed& need, const TrainConfig& config, double machine, double device);

// The same with this machine's memory and, on a GPU, the free memory of `device`.
void check_memory(const ModelConfig& model, const TrainConfig& config, at::ScalarType dtype,
                  const at::Device& device);

}  // namespace heed::train
