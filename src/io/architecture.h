// Families of models: what a family's files call things. Each is one file of io/architecture/,
// which registers itself by its name.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/config_reader.h"
#include "io/gguf.h"
#include "io/model_config.h"

namespace heed {

// "model.layers.7.self_attn.k_proj.weight" -> 7, "self_attn.k_proj", "weight"; layer -1 outside the
// layers.
struct TensorName {
  explicit TensorName(const std::string& name);
  int64_t layer = -1;
  std::string module, kind;

  // 0, 1, 2 for q, k, v; -1 otherwise.
  int qkv() const;
};

// Where a tensor stands in a Hugging Face folder: the `part`-th of `parts` equal pieces of its
// rows, turned round where it is stored [in, out].
struct StoredTensor {
  std::string name;
  int part = 0, parts = 1;
  bool transposed = false;
};

class Architecture {
 public:
  virtual ~Architecture() = default;

  // "model_type" of config.json, and "general.architecture" of GGUF.
  virtual std::string_view name() const = 0;
  // "architectures" of config.json.
  virtual const char* model_class() const = 0;

  // config.json into what the model is made of: all but eos, bos, pad, dtype. Throws Error naming
  // file and key.
  virtual void read(const ConfigReader& r, ModelConfig& c) const = 0;
  // The same back, into an object that may hold what was read.
  virtual void write(const ModelConfig& c, Json& out) const = 0;
  // What check_config() does not know. Throws Error.
  virtual void check(const ModelConfig& c, const std::string& path) const {}

  // Whether GGUF files have it; the sizes that all have are read already.
  virtual bool in_gguf() const { return false; }
  virtual void read_gguf(const GgufFile& file, ModelConfig& c) const {}
  // Whether the rows of q and k lie interleaved in GGUF.
  virtual bool gguf_interleaves() const { return false; }

  // A tensor of Llama's name (model/source.h) in the folder; kept as it is where not said
  // otherwise.
  virtual StoredTensor stored(const std::string& name) const { return {name}; }
  // Put before stored names where the folder has it there.
  virtual std::string prefix() const { return ""; }
};

// In the order of their files.
const std::vector<std::unique_ptr<const Architecture>>& architectures();
// Null where there is none of that name.
const Architecture* find_architecture(std::string_view name);
// Their names, as a sentence lists them; those that GGUF files have alone.
std::string architecture_names(bool in_gguf = false);

namespace architecture {

// What the files of io/architecture/ add themselves to.
class List {
 public:
  void add(std::unique_ptr<const Architecture> one) { all_.push_back(std::move(one)); }
  std::vector<std::unique_ptr<const Architecture>> take() { return std::move(all_); }

 private:
  std::vector<std::unique_ptr<const Architecture>> all_;
};

}  // namespace architecture
}  // namespace heed
