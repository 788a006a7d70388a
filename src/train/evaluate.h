// What a training run measures on text that it does not train on.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "data/packing.h"
#include "data/recall.h"
#include "io/progress.h"
#include "model/decoder.h"

namespace heed::train {

// A batch on the model's device.
struct DeviceBatch {
  at::Tensor ids;      // int64 [1, N]
  at::Tensor targets;  // int64 [N]
  Pass pass;           // with the pack's bounds
};
DeviceBatch to_device(const data::Batch& batch, const at::Device& device);

// Mean cross-entropy, in nats a token, over all targets of the batches. No gradients.
double mean_loss(const Decoder& model, const std::vector<data::Batch>& batches,
                 Progress& progress = no_progress());

// Passkey questions of one length and depth: how many were answered right, all digits, when the
// model is shown the right answer's earlier digits (teacher forcing).
struct RecallCell {
  int64_t length = 0;
  double depth = 0;  // as asked for, 0 to 1
  int64_t asked = 0, right = 0;
};
std::vector<RecallCell> passkey_recall(const Decoder& model, const data::RecallGenerator& generator,
                                       const std::vector<int64_t>& lengths,
                                       const std::vector<double>& depths, int64_t samples,
                                       uint64_t seed, Progress& progress = no_progress());

}  // namespace heed::train
