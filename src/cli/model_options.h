// Options of every command that runs a model.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "cli/command.h"
#include "model/decoder.h"

namespace heed::cli {

// "float64", "float32", "bfloat16" or "float16". Throws UsageError for another name.
at::ScalarType dtype_from_name(const std::string& name);

// Weights and activations as --dtype and --device say; `context` 0: what the model was made for.
LoadOptions load_options(const CommonOptions& common, int64_t context = 0);

// --weights; `text` empty: blocks for float32 on the CPU, else exact. Throws UsageError for blocks
// that do not go with --dtype or --device.
void add_weights(CLI::App* command, std::string& text);
LoadOptions load_options(const CommonOptions& common, const std::string& weights, int64_t context);

// --kv-dtype; `text` empty: float16 on the CPU, the weights' type on CUDA.
void add_kv_dtype(CLI::App* command, std::string& text);
at::ScalarType kv_dtype(const std::string& text, const LoadOptions& load);

}  // namespace heed::cli
