// The built-in model cut to two of its layers and 256 tokens: real weights and its tokenizer, in a
// fraction of the time.
#pragma once

#include <filesystem>
#include <fstream>

#include "io/json.h"

namespace heed::test {

inline void make_small_builtin(const std::filesystem::path& folder) {
  const std::filesystem::path from = std::filesystem::path(HEED_SOURCE_DIR) / "models/builtin";
  std::filesystem::create_directories(folder);
  for (const char* name :
       {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    std::filesystem::create_symlink(from / name, folder / name);
  }
  Json config = read_json((from / "config.json").string());
  config["max_position_embeddings"] = 256;
  config["num_hidden_layers"] = 2;
  std::ofstream(folder / "config.json") << config.dump();
}

}  // namespace heed::test
