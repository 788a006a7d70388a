// ModelConfig from the metadata of GGUF files and from llama2.c headers; see model_config.h. Keys:
// github.com/ggml-org/ggml/blob/master/docs/gguf.md.
#include <algorithm>
#include <cmath>

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

namespace {

// A size, or one for each layer, all equal.
int64_t size_of_layers(const GgufFile& file, const std::string& key, int64_t layers) {
  const auto found = file.values.find(key);
  if (found == file.values.end() || found->second.type != GgufType::ARRAY) return file.integer(key);
  const std::vector<int64_t> sizes = file.integers(key);
  if (static_cast<int64_t>(sizes.size()) != layers) {
    throw Error("{}: {} has {} entries for {} layers", file.path, key, sizes.size(), layers);
  }
  for (int64_t l = 1; l < layers; ++l) {
    if (sizes[l] != sizes[0]) {
      throw Error(
          "{}: {} of layer {} is {}, of layer 0 {}; models whose layers differ are not read",
          file.path, key, l, sizes[l], sizes[0]);
    }
  }
  return sizes[0];
}

// attention.sliding_window: one for all or one a layer, 0 for none; sliding_window_pattern says
// which layers slide: true or false for each, or every but each n-th.
void read_windows(const GgufFile& file, const std::string& key, ModelConfig& c) {
  const auto found = file.values.find(key);
  if (found != file.values.end() && found->second.type == GgufType::ARRAY) {
    c.windows = file.integers(key);
    if (static_cast<int64_t>(c.windows.size()) != c.layers) {
      throw Error("{}: {} has {} entries for {} layers", file.path, key, c.windows.size(),
                  c.layers);
    }
  } else {
    c.windows.assign(c.layers, file.integer(key, 0));
  }
  const std::string pattern_key = key + "_pattern";
  const auto pattern = file.values.find(pattern_key);
  if (pattern == file.values.end()) return;
  const GgufValue& value = pattern->second;
  if (value.type != GgufType::ARRAY) {
    const int64_t n = file.integer(pattern_key);
    for (int64_t l = 0; l < c.layers && n > 0; ++l) {
      if (l % n == n - 1) c.windows[l] = 0;
    }
    return;
  }
  const bool booleans = value.element == GgufType::BOOL;
  if (static_cast<int64_t>(value.count) != c.layers) {
    throw Error("{}: {} has {} entries for {} layers", file.path, pattern_key, value.count,
                c.layers);
  }
  const std::vector<int64_t> numbers =
      booleans ? std::vector<int64_t>() : file.integers(pattern_key);
  for (int64_t l = 0; l < c.layers; ++l) {
    const bool slides = booleans ? value.data[l] != std::byte{0} : numbers[l] != 0;
    if (!slides) c.windows[l] = 0;
  }
}

// Divisors of the rotary frequencies that are stored as a tensor.
std::vector<double> read_divisors(const GgufFile& file, const char* name, const ModelConfig& c) {
  const TensorInfo& tensor = file.get(name);
  if (tensor.elements() != c.rotary_dims() / 2 || !can_dequantize(tensor.dtype)) {
    throw Error("{}: {} has shape {} and type {}, {} numbers were expected", file.path, name,
                shape_text(tensor.shape), dtype_name(tensor.dtype), c.rotary_dims() / 2);
  }
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  dequantize_rows(tensor, 0, tensor.rows(), values.data());
  return {values.begin(), values.end()};
}

// llama.cpp's YaRN: `extrapolation` 1 is the paper's, 0 leaves plain interpolation; the factor on
// cos and sin follows from the scale and, in DeepSeek's way, from a logarithm's multiplier.
void read_yarn(const GgufFile& file, const std::string& prefix, double attention,
               RopeConfig& rope) {
  const auto real = [&](const char* name, double fallback) {
    return file.real(prefix + name, fallback);
  };
  const double extrapolation = real("yarn_ext_factor", 1);
  attention *= real("yarn_attn_factor", 1);
  if (extrapolation == 0) {
    rope.type = "linear";
    rope.attention_factor = attention;
    return;
  }
  if (extrapolation > 0 && extrapolation != 1) {
    throw Error("{}: {}yarn_ext_factor is {}; 0 and 1 are read", file.path, prefix, extrapolation);
  }
  rope.type = "yarn";
  rope.beta_fast = real("yarn_beta_fast", rope.beta_fast);
  rope.beta_slow = real("yarn_beta_slow", rope.beta_slow);
  const double multiplier = real("yarn_log_multiplier", 0);
  if (multiplier != 0) rope.mscale = 1;
  rope.mscale_all_dim = multiplier;
  if (attention == 1) return;
  const auto scale = [&](double m) {
    return rope.factor <= 1 ? 1.0 : 0.1 * m * std::log(rope.factor) + 1.0;
  };
  rope.attention_factor = attention * scale(1) / (multiplier != 0 ? scale(multiplier) : 1.0);
}

// All that llama.cpp reads for rotary embedding (llama_model::load_hparams and llama_context):
// rope.scaling.factor or, in older files, rope.scale_linear; without a type it means linear.
void read_rope(const GgufFile& file, const std::string& arch, ModelConfig& c) {
  const auto key = [&](const char* name) { return arch + ".rope." + name; };
  RopeConfig& rope = c.rope;
  if (const int64_t dims = file.integer(key("dimension_count"), c.head_dim); dims != c.head_dim) {
    if (dims < 2 || dims > c.head_dim || dims % 2 != 0) {
      throw Error("{}: {} is {}; an even number from 2 to the {} dimensions of a head was expected",
                  file.path, key("dimension_count"), dims, c.head_dim);
    }
    rope.dims = static_cast<int32_t>(dims);
  }
  rope.base = file.real(key("freq_base"), 10000.0);
  const bool slides = std::any_of(c.windows.begin(), c.windows.end(), [](int64_t w) { return w; });
  if (const double base = file.real(key("freq_base_swa"), rope.base); slides && base != rope.base) {
    throw Error("{}: {} is {}, {} is {}; layers that turn by different bases are not supported",
                file.path, key("freq_base_swa"), base, key("freq_base"), rope.base);
  }
  const std::string type = file.string(key("scaling.type"), "linear");
  double factor = file.real(key("scaling.factor"), file.real(key("scale_linear"), 0.0));
  if (factor == 0 || type == "none") factor = 1;
  const double attention = file.real(key("scaling.attn_factor"), 1.0);
  if (!(attention > 0 && std::isfinite(attention))) {
    throw Error("{}: {} is {}; a number above 0 was expected", file.path,
                key("scaling.attn_factor"), attention);
  }
  rope.factor = factor;
  rope.original_max_position = file.integer(key("scaling.original_context_length"), 0);
  const bool divided = file.find("rope_freqs.weight") != nullptr;
  if (type == "longrope") {
    rope.type = type;
    rope.short_factor = read_divisors(file, "rope_factors_short.weight", c);
    rope.long_factor = read_divisors(file, "rope_factors_long.weight", c);
  } else if (type == "yarn") {
    if (divided) {
      throw Error("{}: rope_freqs.weight together with yarn is not supported", file.path);
    }
    read_yarn(file, key("scaling."), attention, rope);
    if (rope.type == "yarn" || rope.attention_factor == 1) return;
  } else if (type != "none" && type != "linear") {
    throw Error("{}: rotary scaling \"{}\" is not known; known are none, linear, yarn and longrope",
                file.path, printable(type, 60));
  } else if (!divided && attention == 1) {
    if (factor != 1) rope.type = "linear";
    return;
  }
  // Divisors, of which Llama 3's are made when a file is written, and a factor on cos and sin:
  // longrope says the same.
  const double scale = rope.type == "linear" ? rope.attention_factor : attention;
  if (rope.type != "longrope") {
    rope.type = "longrope";
    rope.short_factor = divided ? read_divisors(file, "rope_freqs.weight", c)
                                : std::vector<double>(c.rotary_dims() / 2, 1.0);
    rope.long_factor = rope.short_factor;
    rope.original_max_position = c.max_position;
  }
  for (auto* factors : {&rope.short_factor, &rope.long_factor}) {
    for (double& divisor : *factors) divisor *= factor;
  }
  rope.factor = 1;
  rope.attention_factor = scale;
}

}  // namespace

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
  if (c.layers < 1 || c.layers > 10000)
    throw Error("{}: {} is {}; 1 to 10000 was expected", file.path, key("block_count"), c.layers);
  c.intermediate = size_of_layers(file, key("feed_forward_length"), c.layers);
  c.heads = size_of_layers(file, key("attention.head_count"), c.layers);
  c.kv_heads = file.has(key("attention.head_count_kv"))
                   ? size_of_layers(file, key("attention.head_count_kv"), c.layers)
                   : c.heads;
  c.max_position = file.integer(key("context_length"));
  c.head_dim = file.integer(key("attention.key_length"), c.heads > 0 ? c.hidden / c.heads : 0);
  if (file.integer(key("attention.value_length"), c.head_dim) != c.head_dim) {
    throw Error("{}: keys and values of different sizes are not supported", file.path);
  }
  const TensorInfo& embedding = file.get("token_embd.weight");
  if (embedding.shape.size() != 2) {
    throw Error("{}: token_embd.weight has shape {}, a matrix was expected", file.path,
                shape_text(embedding.shape));
  }
  c.vocab = embedding.shape[0];
  c.tied = file.find("output.weight") == nullptr;
  read_windows(file, key("attention.sliding_window"), c);
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
  check_config(c, file.path);  // sizes first: lists are made from them
  read_rope(file, arch, c);
  check_config(c, file.path);
  return c;
}

}  // namespace heed
