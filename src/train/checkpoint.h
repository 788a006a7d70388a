// Checkpoints of a training run: folders OUT/checkpoints/step-00001000 with
//
//   model.safetensors      float32 weights; with config.json and the tokenizer a model folder
//   optimizer.safetensors  AdamW's moments, and the state of PyTorch's random numbers
//   state.json             steps done, rows read, tokens, seconds
//
// A folder appears whole (written under another name, flushed, renamed) or not at all.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "io/json.h"
#include "io/model_config.h"

namespace heed::train {

struct Checkpoint {
  int64_t step = 0;                           // steps done
  int64_t rows = 0;                           // rows of training text read
  double seconds = 0;                         // of training, all sessions together
  Json config;                                // config_to_json() of the run
  std::map<std::string, at::Tensor> weights;  // float32
  std::map<std::string, at::Tensor> state;    // AdamW::state()
};

// Writes a checkpoint and removes all but the newest `keep`. `tokenizer` is a folder whose
// tokenizer files are copied along. Returns its folder.
std::string save_checkpoint(const std::string& out, const Checkpoint& checkpoint,
                            const ModelConfig& config, const std::string& tokenizer, int64_t keep);

// Folder of the newest whole checkpoint of a run; nothing if there is none.
std::optional<std::string> newest_checkpoint(const std::string& out);

// Reads it (tensors on the CPU) and puts PyTorch's random numbers where they were. Throws Error for
// a checkpoint that is broken.
Checkpoint load_checkpoint(const std::string& folder);

// Copies tokenizer.json, tokenizer_config.json, special_tokens_map.json and tokenizer.model, those
// that are there.
void copy_tokenizer(const std::string& from, const std::string& to);

}  // namespace heed::train
