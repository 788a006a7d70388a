// The decoder: Llama, Mistral, Qwen2, Qwen3 and GPT-2, whose layers are softmax attention or any
// other mixer of the registry.
//
//   logits = head(trunk(embedding(ids)))
//
// Functional code over tensors: it runs under autograd for training and searching, over caches for
// generating, and one layer at a time through fused loops where no gradient is asked for on the
// CPU. The two ways are tested against each other.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/model_config.h"
#include "model/decoder_state.h"
#include "model/embedding.h"
#include "model/head.h"
#include "model/trunk.h"

namespace heed {

class ModelSource;

// How the matrices of a model are kept: exactly, in the type of the activations; in the blocks of
// its file (a GGUF's, or 16-bit numbers), as they are; or rounded to blocks while they are read.
enum class WeightForm { kExact, kBlocks, kQ8_0, kQ4_0 };

struct LoadOptions {
  at::ScalarType dtype = at::kFloat;  // of weights and activations: float32, bfloat16, float16
  at::Device device = at::kCPU;
  // Tokens that a sequence may have; 0: what the model was made for. Dynamic NTK and longrope
  // choose their frequencies for it. More than the model was made for is an error where positions
  // are a table (GPT-2).
  int64_t context = 0;
  // Other than exact: float32 activations on the CPU alone. Of layers with other mixers than
  // softmax attention the MLPs are in blocks; with kQ4_0 embedding and head are Q8_0.
  WeightForm weights = WeightForm::kExact;
};

class Decoder {
 public:
  // `model`: a folder, a .gguf file, a llama2.c .bin file or a name of `heed models`. Throws Error
  // naming file, tensor and shape.
  static Decoder load(const std::string& model, const LoadOptions& options = {});
  // Names and shapes of all weights of such a model, in file order; takes no memory for them.
  static std::vector<std::pair<std::string, std::vector<int64_t>>> shapes(
      const ModelConfig& config);
  // Such a model without memory for its weights: what its layers are, keep and cost.
  static Decoder bare(const ModelConfig& config);
  // The check that load() begins with: throws Error where a tensor that the configuration asks for
  // is missing, misshapen or of a type that is not read. Looks at headers alone.
  static void check(const ModelSource& source);
  // Freshly initialised: matrices N(0, 0.02), those that write to the residual stream divided by
  // sqrt(2 layers), norms 1, biases 0.
  static Decoder random(const ModelConfig& config, uint64_t seed, const LoadOptions& options = {});

  const ModelConfig& config() const { return config_; }
  const LoadOptions& options() const { return options_; }
  // What plans know the model by (DESIGN: SHA-256 of shapes and stored key projections).
  const std::string& hash() const { return hash_; }
  const std::string& path() const { return path_; }
  int64_t context() const { return context_; }

  // ids int64 [B, T] -> the last layer's output after the final norm, [B, T, C]. Throws UsageError
  // for an id outside the vocabulary and for more tokens than context().
  at::Tensor hidden(const at::Tensor& ids, Pass& pass) const;
  // [..., C] -> scores [..., vocab] in the weights' dtype. Pick the rows that are wanted first.
  at::Tensor logits(const at::Tensor& hidden, mixer::Taps* taps = nullptr) const;
  // logits(hidden(ids)) in one.
  at::Tensor forward(const at::Tensor& ids, Pass& pass) const;

  // The state of one new sequence.
  std::unique_ptr<DecoderState> make_state(const StateOptions& options = {}) const;
  // Bytes that such a state holds after `tokens` tokens (DecoderState::bytes()).
  int64_t state_bytes(int64_t tokens, const StateOptions& options = {}) const;
  // Feeds `ids` (any number) to the state in chunks whose activations stay in the processor's
  // caches; returns hidden [1, 1, C] of the last token. Looks at Ctrl-C between chunks.
  at::Tensor prefill(std::span<const int64_t> ids, DecoderState& state, int64_t chunk = 512,
                     mixer::Taps* taps = nullptr) const;
  // One token for each of N sequences: the scores of those that follow, [N, vocab]. Several
  // sequences read each weight once (nn/few_rows.h).
  at::Tensor scores(std::span<const int64_t> ids, std::span<DecoderState* const> states) const;
  // The same before the head, by the products that a prompt has: hidden [1, N, C].
  at::Tensor step(std::span<const int64_t> ids, std::span<DecoderState* const> states) const;

  // All weights by name, in file order; tied ones once. The handles share the model's storage:
  // changing them in place changes the model. Of what is kept in blocks only the sizes are there.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;
  void requires_grad(bool on);
  // Bytes of all weights in memory, and of those that the products of a token read.
  int64_t weight_bytes() const;
  int64_t bytes_a_token() const;
  // Moves all weights; call it before any requires_grad().
  void move_to(const at::Device& device);

  // Writes a Hugging Face folder: config.json, generation_config.json, model.safetensors (or shards
  // of at most `shard_bytes`), and the tokenizer's files of the folder it was loaded from. Atomic
  // file by file.
  struct SaveOptions {
    at::ScalarType dtype = at::kFloat;
    int64_t shard_bytes = 0;  // 0: one file
    std::string
        tokenizer_from;  // folder to copy tokenizer files from; empty: where the model came from
  };
  void save(const std::string& folder, const SaveOptions& options) const;
  void save(const std::string& folder) const { save(folder, SaveOptions()); }

  std::vector<Block>& blocks() { return trunk_.blocks(); }
  const std::vector<Block>& blocks() const { return trunk_.blocks(); }
  const Weight& embedding() const { return embedding_.table(); }
  const Weight& head() const { return head_.weight(embedding_); }
  ModelConfig& mutable_config() { return config_; }

 private:
  Decoder(ModelConfig config, const LoadOptions& options);
  // All parameters, in the order of shapes().
  void visit(const VisitParameter& visit);
  // The matrices that may be in blocks.
  void visit_matrices(const std::function<void(const std::string&, Weight&)>& visit);
  void put_in_blocks(const ModelSource& source);

  ModelConfig config_;
  LoadOptions options_;
  std::string hash_, path_;
  int64_t context_ = 0;
  Embedding embedding_;
  Trunk trunk_;
  Head head_;
};

}  // namespace heed
