// The checkpoint and tokenizer formats of llama2.c (github.com/karpathy/llama2.c, export.py
// `legacy_export` and tokenizer.py `export`).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor_file.h"

namespace heed {

// A checkpoint: seven int32, then float32 tensors one after another. They get the names that
// Hugging Face gives a Llama model (model.layers.N.self_attn.q_proj.weight, ...; lm_head.weight
// only if it is not tied). Rows of q_proj and k_proj are as the file has them: rotary pairs are
// neighbours (2i, 2i+1). RMS epsilon 1e-5, rotary base 10000, SwiGLU.
struct Llama2cModel {
  TensorFile file;
  int64_t dim = 0;
  int64_t hidden_dim = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t vocab = 0;
  int64_t context = 0;
  bool tied = false;  // the output layer shares the token embedding
};

// Error unless the sizes are sound and the file has exactly the bytes they ask for.
Llama2cModel open_llama2c(const std::string& path);
// The same from memory; `bytes` must outlive the result.
Llama2cModel parse_llama2c(std::span<const std::byte> bytes, const std::string& name);

// Whether a file could begin like that: the seven sizes are sound and fit each other.
bool is_llama2c_header(std::span<const std::byte> bytes);

// A tokenizer.bin: the longest piece's length, then for each piece its score, length and bytes.
// Pieces 0 to 2 are unknown, begin and end; 3 to 258 the single bytes, written <0xHH>.
struct Llama2cVocab {
  std::vector<std::string> pieces;
  std::vector<float> scores;  // like pieces
};

Llama2cVocab open_llama2c_vocab(const std::string& path);
Llama2cVocab parse_llama2c_vocab(std::span<const std::byte> bytes, const std::string& name);

}  // namespace heed
