// ModelConfig from the metadata of GGUF files and from llama2.c headers; see model_config.h. Keys:
// github.com/ggml-org/ggml/blob/master/docs/gguf.md.
#include <algorithm>

#include "io/dequant.h"
#include "io/describe.h"
#include "io/model_config.h"

namespace heed {

ModelConfig config_from_llama2c(const Llama2cModel& model, const std::string& path) {
  ModelConfig c;
  c.hidden = model.dim;
  c.intermediate = model.hidden_dim;
  c.layers = model.layers;
  c.heads = model.heads;
  c.kv_heads = model.kv_heads;
  c.head_dim = model.heads > 0 ? model.dim / model.heads : 0;
  c.vocab = model.vocab;
  c.max_position = model.context;
  c.norm_eps = 1e-5;
  c.tied = model.tied;
  c.bos = 1;
  c.eos = {2};
  c.windows.assign(c.layers, 0);
  check_config(c, path);
  return c;
}

ModelConfig config_from_gguf(const GgufFile& file) {
  const std::string arch = file.string("general.architecture");
  ModelConfig c;
  if (arch != "llama" && arch != "qwen2" && arch != "qwen3" && arch != "gpt2") {
    throw Error(
        "{}: architecture \"{}\" is unknown; Heed reads llama, qwen2, qwen3 and gpt2 from GGUF",
        file.path, printable(arch, 60));
  }
  c.family = arch;
  const auto key = [&](const char* name) { return arch + "." + name; };
  c.layers = file.integer(key("block_count"));
  c.hidden = file.integer(key("embedding_length"));
  c.intermediate = file.integer(key("feed_forward_length"));
  c.heads = file.integer(key("attention.head_count"));
  c.kv_heads = file.integer(key("attention.head_count_kv"), c.heads);
  c.max_position = file.integer(key("context_length"));
  c.head_dim = file.integer(key("attention.key_length"), c.heads > 0 ? c.hidden / c.heads : 0);
  if (file.integer(key("attention.value_length"), c.head_dim) != c.head_dim) {
    throw Error("{}: keys and values of different sizes are not supported", file.path);
  }
  if (c.layers < 1 || c.layers > 10000)
    throw Error("{}: {} is {}", file.path, key("block_count"), c.layers);
  const TensorInfo& embedding = file.get("token_embd.weight");
  if (embedding.shape.size() != 2) {
    throw Error("{}: token_embd.weight has shape {}, a matrix was expected", file.path,
                shape_text(embedding.shape));
  }
  c.vocab = embedding.shape[0];
  c.tied = file.find("output.weight") == nullptr;
  c.windows.assign(c.layers, file.integer(key("attention.sliding_window"), 0));
  c.bos = file.integer("tokenizer.ggml.bos_token_id", -1);
  c.pad = file.integer("tokenizer.ggml.padding_token_id", -1);
  if (file.has("tokenizer.ggml.eos_token_id"))
    c.eos = {file.integer("tokenizer.ggml.eos_token_id")};
  c.stored_dtype = "float32";
  if (arch == "gpt2") {
    c.layer_norm = c.learned_positions = true;
    c.gated_mlp = false;
    c.qkv_bias = c.out_bias = c.mlp_bias = true;
    c.activation = "gelu_tanh";
    c.norm_eps = file.real(key("attention.layer_norm_epsilon"));
    check_config(c, file.path);
    return c;
  }
  c.norm_eps = file.real(key("attention.layer_norm_rms_epsilon"));
  c.qk_norm = arch == "qwen3";
  c.qkv_bias = file.find("blk.0.attn_q.bias") != nullptr;
  c.out_bias = file.find("blk.0.attn_output.bias") != nullptr;
  c.mlp_bias = file.find("blk.0.ffn_up.bias") != nullptr;
  if (file.find("blk.0.ffn_gate_exps.weight") || file.integer(key("expert_count"), 0) > 0) {
    throw Error("{}: mixtures of experts are not supported", file.path);
  }
  if (const int64_t rotary = file.integer(key("rope.dimension_count"), c.head_dim);
      rotary != c.head_dim) {
    throw Error("{}: {} is {}, heads have {} dimensions; partial rotation is not supported",
                file.path, key("rope.dimension_count"), rotary, c.head_dim);
  }
  c.rope.base = file.real(key("rope.freq_base"), 10000.0);
  const std::string scaling = file.string(key("rope.scaling.type"), "none");
  if (scaling == "linear" || scaling == "yarn") {
    c.rope.type = scaling;
    c.rope.factor = file.real(key("rope.scaling.factor"));
    c.rope.original_max_position = file.integer(key("rope.scaling.original_context_length"), 0);
  } else if (scaling != "none") {
    throw Error(
        "{}: rotary scaling \"{}\" is not supported in GGUF; known are linear, yarn and rope_freqs",
        file.path, printable(scaling, 60));
  }
  if (const TensorInfo* divisors = file.find("rope_freqs.weight")) {
    // Llama 3's scaling as ready divisors of the frequencies: longrope with one list says the same.
    if (divisors->elements() != c.head_dim / 2 || !can_dequantize(divisors->dtype)) {
      throw Error("{}: rope_freqs.weight has shape {}, {} numbers were expected", file.path,
                  shape_text(divisors->shape), c.head_dim / 2);
    }
    std::vector<float> values(c.head_dim / 2);
    dequantize_rows(*divisors, 0, divisors->rows(), values.data());
    c.rope.type = "longrope";
    c.rope.factor = c.rope.attention_factor = 1;
    c.rope.original_max_position = c.max_position;
    c.rope.short_factor.assign(values.begin(), values.end());
    c.rope.long_factor = c.rope.short_factor;
  }
  check_config(c, file.path);
  return c;
}

}  // namespace heed
