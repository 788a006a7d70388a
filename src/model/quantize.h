// A model as a GGUF file in other types: what `heed quantize` does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/progress.h"
#include "io/tensor_file.h"

namespace heed {

// The types that matrices can be given, as the command line names them: f32, f16, bf16, q8_0,
// q4_1, q4_0.
std::vector<std::string> quantised_types();

struct QuantizeResult {
  int64_t tensors = 0, bytes = 0;  // of the written file
  int64_t parameters = 0;
};

// Writes `model` (whatever Decoder::load takes) as the GGUF file `out`, atomically. Matrices become
// `type` (with q4_0 and q4_1 the embedding and the head q8_0), or f16 where their rows are not
// whole blocks; vectors float32. Of a GGUF file the metadata and the order of rows stay as they
// are; of others they are those that llama.cpp expects. Throws Error for a model that GGUF cannot
// hold: other mixers, a rotary scaling without a key, a tokenizer without a name.
QuantizeResult quantize_model(const std::string& model, const std::string& type,
                              const std::string& out, Progress& progress = no_progress());

}  // namespace heed
