// Where a model's weights lie: a Hugging Face folder, a GGUF file or a llama2.c checkpoint. All
// three are seen under one set of tensor names and shapes, those of Llama in transformers:
//
//   model.embed_tokens.weight [vocab, hidden]       model.embed_positions.weight [max_position,
//   hidden] (GPT-2) model.layers.N.input_layernorm.* model.layers.N.self_attn.{q,k,v,o}_proj.*
//   model.layers.N.self_attn.{q,k}_norm.weight      model.layers.N.post_attention_layernorm.*
//   model.layers.N.mlp.{gate,up,down}_proj.*        model.norm.*        lm_head.weight
//
// GPT-2's c_fc and c_proj are up_proj and down_proj, its fused c_attn is cut into three, and
// matrices are [out, in] everywhere. Llama rows that GGUF and llama2.c interleave are put back for
// half-split rotation.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/gguf.h"
#include "io/model_config.h"
#include "io/tensor_file.h"
#include "nn/block_weight.h"

namespace heed {

class Architecture;

class ModelSource {
 public:
  // `path`: whatever find_model (io/model_path.h) takes: a folder with config.json and safetensors,
  // a GGUF file, whole or split, or a llama2.c checkpoint, told by their first bytes. Reads
  // headers, and of a tied model that stores a head as well, the head and the embedding. Throws
  // Error naming file and key where something is missing or broken.
  static ModelSource open(const std::string& path);

  const ModelConfig& config() const { return config_; }
  const std::string& path() const { return path_; }
  const std::string& format() const { return format_; }  // "safetensors", "gguf" or "llama2.c"
  // The GGUF file's metadata (tokenizer, chat template); null for other formats.
  const GgufFile* gguf() const { return gguf_.get(); }
  // Stored types with the number of bytes in each, e.g. "Q4_1", largest first.
  std::vector<std::pair<std::string, int64_t>> stored_types() const;

  bool has(const std::string& name) const;
  // Throws Error naming file, tensor and shapes if the tensor is missing, misshapen or of a type
  // that is not read.
  void check(const std::string& name, at::IntArrayRef shape) const;
  // De-quantises into `out`, a CPU tensor of the shape that the model needs, of any floating type.
  // Checks first.
  void read(const std::string& name, const at::Tensor& out) const;
  // The rows that read() would give, where they lie in the file; nothing where columns do (a matrix
  // stored as [in, out]). Call check() first.
  std::optional<StoredMatrix> matrix(const std::string& name) const;

  // What GGUF calls a tensor of Llama's name; "" where it has none.
  static std::string gguf_name(const std::string& name);
  // What plans know the model by: SHA-256 (hex) of canonical_shapes() and the first 64 KiB of every
  // layer's stored key projection.
  std::string hash() const;

 private:
  // A tensor of the file and what part of it, turned how, is meant.
  struct Place {
    const TensorInfo* tensor = nullptr;
    int part = 0, parts = 1;        // a third of GPT-2's c_attn
    bool transposed = false;        // stored [in, out]
    int64_t interleaved_heads = 0;  // rows of that many heads lie in interleaved order, of each
                                    // head the first rotary_dims(); 0: half-split
  };
  void open_folder();
  void settle_head();
  std::optional<Place> find(const std::string& name) const;

  std::string path_, format_;
  ModelConfig config_;
  const Architecture* architecture_ = nullptr;  // what its files call things
  std::shared_ptr<GgufFile> gguf_;
  std::shared_ptr<TensorFile> file_;  // the same object as gguf_ for GGUF
};

}  // namespace heed
