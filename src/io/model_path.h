// From the path that a user gives to the folder or file that holds the model.
#pragma once

#include <string>

namespace heed {

enum class ModelFormat { kSafetensors, kGguf, kLlama2c };

struct ModelPlace {
  // A folder with config.json for kSafetensors; else the file (any part of a split GGUF).
  std::string path;
  ModelFormat format = ModelFormat::kSafetensors;
};

// Files are told by their first bytes, never by their names. Taken are: a folder with config.json;
// a file of such a folder (config.json, model.safetensors, a shard, the index); a folder of the
// Hugging Face hub's cache (`models--OWNER--NAME`), of which refs/main or the only snapshot counts;
// a folder with one GGUF model; a GGUF file; a llama2.c checkpoint; and links to any of them. Error
// saying what there is instead and what to do otherwise. Reads no more than the beginnings of
// files.
ModelPlace find_model(const std::string& path);

}  // namespace heed
