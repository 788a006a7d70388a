// Rotary embedding in GGUF files; see llama_like.h. Keys:
// github.com/ggml-org/ggml/blob/master/docs/gguf.md.
#include <algorithm>
#include <cmath>

#include "io/dequant.h"
#include "io/describe.h"
#include "io/llama_like.h"

namespace heed {
namespace {

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

}  // namespace

// All that llama.cpp reads for rotary embedding (llama_model::load_hparams and llama_context):
// rope.scaling.factor or, in older files, rope.scale_linear; without a type it means linear.
void read_gguf_rope(const GgufFile& file, const std::string& arch, ModelConfig& c) {
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

}  // namespace heed
