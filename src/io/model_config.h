// What a decoder model is made of: one description for the families Llama, Mistral, Qwen2, Qwen3
// and GPT-2, read from config.json (of either generation), from GGUF metadata or from a llama2.c
// header, and written back as config.json.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "io/error.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/llama2c.h"

namespace heed {

// Rotary position embedding (RoFormer, arXiv 2104.09864) and its ways to reach longer contexts.
struct RopeConfig {
  double base = 10000;
  // default | linear | dynamic (NTK) | yarn (arXiv 2309.00071) | llama3 | longrope (arXiv
  // 2402.13753)
  std::string type = "default";
  double factor = 1;
  int64_t original_max_position = 0;  // context of the unscaled model; 0: the model's max_position
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  bool truncate = true;         // yarn: round the ramp's ends to whole dimensions
  int32_t dims = 0;             // the first dimensions of a head, which alone turn; even; 0: all
  double attention_factor = 0;  // yarn, longrope: factor on cos and sin; 0: by formula
  double mscale = 0, mscale_all_dim = 0;          // yarn, DeepSeek's variant; 0: not used
  std::vector<double> short_factor, long_factor;  // longrope: divisors of each frequency
};

// A layer whose attention was replaced by another mixer of Heed's registry.
struct MixerConfig {
  std::string id;  // as in `heed list`
  Json options;    // an object
};

struct ModelConfig {
  std::string family = "llama";  // llama | mistral | qwen2 | qwen3 | gpt2
  int64_t vocab = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t layers = 0;
  int64_t heads = 0;     // query heads
  int64_t kv_heads = 0;  // divides heads
  int64_t head_dim = 0;
  int64_t max_position = 0;      // context that the model was made for, in tokens
  std::vector<int64_t> windows;  // sliding window of each layer (the query itself counts); 0: none
  double norm_eps = 1e-6;
  std::string activation = "silu";  // silu | gelu | gelu_tanh | relu
  bool layer_norm = false;          // LayerNorm with bias in place of RMSNorm
  bool gated_mlp = true;            // down(act(gate x) * up x) in place of down(act(up x))
  bool qkv_bias = false, out_bias = false, mlp_bias = false;
  bool qk_norm = false;            // RMSNorm over each head of q and k before rotation
  bool learned_positions = false;  // GPT-2: a table of position vectors in place of rotation
  bool tied = false;               // the head is the embedding matrix
  RopeConfig rope;
  std::vector<int64_t> eos;  // ids that end a generation
  int64_t bos = -1, pad = -1;
  std::map<int64_t, MixerConfig> mixers;  // by layer; the others have softmax attention
  Json plan;                              // `heed.plan` of config.json; null if there is none
  std::string stored_dtype = "float32";   // what the file says its weights are
  Json source;                            // config.json as it was read; null for other formats

  int64_t group() const { return heads / kv_heads; }
  int64_t q_size() const { return heads * head_dim; }
  int64_t kv_size() const { return kv_heads * head_dim; }
  int64_t rotary_dims() const { return rope.dims > 0 ? rope.dims : head_dim; }
  int64_t parameters()
      const;  // elements of all matrices and vectors, tied ones once, mixers not counted
};

// Reads a config.json. `path` is named in messages. Throws Error for an unknown model_type,
// activation or rotary scaling, and for sizes that are missing, not whole, not positive or do not
// fit each other. Sizes that are given for each layer must agree; sliding windows may differ.
ModelConfig parse_config(const Json& json, const std::string& path);

// The same from the metadata of a GGUF file and from a llama2.c header; Errors as for config.json.
ModelConfig config_from_gguf(const GgufFile& file);
ModelConfig config_from_llama2c(const Llama2cModel& model, const std::string& path);

// Checks that sizes are sane and fit each other (what all three do last); Error names the key.
void check_config(const ModelConfig& config, const std::string& path);

// config.json for the model, loadable by transformers: the keys that were read stay, those that
// Heed knows are written anew. A model with other mixers gets model_type "heed" and the original
// under heed.base.
Json config_to_json(const ModelConfig& config, const std::string& dtype);

// Shapes alone, keys sorted, no spaces: the first part of what a plan's model hash is made of.
std::string canonical_shapes(const ModelConfig& config);

}  // namespace heed
