// A small random Llama over bytes, for tests of the rooms above model/.
#pragma once

#include <string>
#include <vector>

#include "data/corpus.h"
#include "data/recall.h"
#include "io/text_file.h"
#include "model/decoder.h"

namespace heed::test {

inline ModelConfig tiny_config() {
  ModelConfig config;
  config.vocab = 257;
  config.hidden = 48;
  config.intermediate = 96;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.max_position = 2048;
  config.windows.assign(3, 0);
  config.tied = true;
  return config;
}

// Weights larger than at initialisation, so that attention is far from uniform.
inline Decoder tiny_model(uint64_t seed = 3) {
  Decoder model = Decoder::random(tiny_config(), seed);
  at::NoGradGuard guard;
  for (auto& [name, tensor] : model.parameters()) {
    if (tensor.dim() == 2) tensor.mul_(6);
  }
  return model;
}

inline data::Corpus tiny_corpus() {
  return data::Corpus::from_texts(
      {read_text_file(std::string(HEED_SOURCE_DIR) + "/tests/data/books.txt")}, data::byte_codec());
}

}  // namespace heed::test
