#include "train/memory.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "io/error.h"
#include "io/machine_memory.h"
#include "model/decoder.h"
#include "train/loss.h"

namespace heed::train {

MemoryNeed memory_need(const ModelConfig& model, const TrainConfig& config, at::ScalarType dtype) {
  const double element = dtype == at::kFloat ? 4 : 2;
  MemoryNeed need;
  try {
    for (const auto& [name, shape] : Decoder::shapes(model)) {
      double size = 1;
      for (const int64_t n : shape) size *= static_cast<double>(n);
      need.parameters += size;
    }
  } catch (const c10::Error&) {  // PyTorch counts in 64 bits
    throw UsageError("[model]: the sizes of a layer multiply to more than 2^63 bytes; lower them");
  }
  // Float32 weights, sums of gradients and two moments; the rounded weights beside them.
  need.weights = need.parameters * (16 + (dtype == at::kFloat ? 0 : element));
  need.gradients = need.parameters * 4;
  need.start = need.parameters * (4 + element);

  const auto length = static_cast<double>(config.data.length);
  const auto rows = static_cast<double>(config.train.rows);
  const double tokens =
      length *
      (config.train.rows_per_pass > 0 ? static_cast<double>(config.train.rows_per_pass) : rows);
  // What the backward pass reads. Of each norm: input, normalised, scaled; of the MLP: the inputs
  // of activation, product and last matrix; of attention: q, k, v and output. Other mixers keep as
  // much and more, which is not counted.
  const auto hidden = static_cast<double>(model.hidden);
  const double mlp = (model.gated_mlp ? 4.0 : 2.0) * static_cast<double>(model.intermediate);
  const double attention = 2.0 * static_cast<double>(model.q_size() + model.kv_size());
  const auto layers = static_cast<double>(model.layers);
  const Decoder bare = Decoder::bare(model);
  const auto attending = static_cast<double>(
      std::count_if(bare.blocks().begin(), bare.blocks().end(),
                    [](const Block& block) { return block.mixer->heads() != nullptr; }));
  const double norms = model.layer_norm ? 4 : 6;
  need.pass = tokens * element * (layers * (norms * hidden + mlp) + attending * attention);
  // Logits and their softmax for some rows at a time; the head's gradient in float32.
  need.pass += static_cast<double>(model.vocab) *
               (std::min(tokens, static_cast<double>(kLogitRows)) * (element + 4) + 4 * hidden);
  need.rows = 2 * rows * length * (sizeof(int32_t) + sizeof(int64_t));
  return need;
}

void check_memory(const MemoryNeed& need, const TrainConfig& config, double machine,
                  double device) {
  const auto& t = config.train;
  const int64_t pass_rows = t.rows_per_pass > 0 ? t.rows_per_pass : t.rows;
  const std::string smaller =
      config.model.from.empty()
          ? "lower model.hidden, model.intermediate, model.layers or the vocabulary"
          : "take a smaller model.from";
  const auto refuse = [&](double bytes, const char* where, double have, const std::string& change) {
    throw UsageError(
        "this run needs at least {} of memory (parameters, gradients and moments of {:.1f} million "
        "weights: {}; a pass of {} rows of {} tokens: {}), {} {}; {}",
        bytes_text(bytes), need.parameters / 1e6, bytes_text(need.weights + need.gradients),
        pass_rows, config.data.length, bytes_text(need.pass), where, bytes_text(have), change);
  };
  // `rows`: of the batches, where they lie in the same memory.
  const auto check = [&](double rows, const char* where, double have) {
    const double training = need.weights + std::max(need.gradients, need.pass);
    if (have <= 0 || training + rows <= have) return;
    std::string change = smaller;
    if (need.weights + need.gradients <= have) {
      change = training > have && pass_rows > 1
                   ? "lower train.rows_per_pass (gradients then add up over more passes)"
               : training > have ? "lower data.length"
                                 : "lower train.rows or data.length";
    }
    refuse(training + rows, where, have, change);
  };
  if (config.device != "cuda") {
    check(need.rows, "this machine has", machine);
    return;
  }
  check(0, "the GPU has free", device);
  if (machine <= 0) return;
  if (need.start > machine) refuse(need.start, "this machine has", machine, smaller);
  if (need.rows > machine) {
    refuse(need.rows, "this machine has", machine, "lower train.rows or data.length");
  }
}

void check_memory(const ModelConfig& model, const TrainConfig& config, at::ScalarType dtype,
                  const at::Device& device) {
  double free = 0;
  if (device.is_cuda()) {
    free = static_cast<double>(
        c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).first);
  }
  check_memory(memory_need(model, config, dtype), config, static_cast<double>(machine_memory()),
               free);
}

}  // namespace heed::train
