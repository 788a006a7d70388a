// See quantize.h. Keys and names of tensors: github.com/ggml-org/ggml/blob/master/docs/gguf.md;
// rows of Llama's q and k: `permute` of llama.cpp's convert_hf_to_gguf.py.
#include "model/quantize.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <optional>

#include "io/architecture.h"
#include "io/dequant.h"
#include "io/error.h"
#include "io/gguf_writer.h"
#include "io/quantise.h"
#include "io/tokenizer/gguf_write.h"
#include "model/decoder.h"
#include "model/hub.h"
#include "model/source.h"
#include "nn/rope.h"

namespace heed {
namespace {

struct TargetType {
  const char* name;
  DType dtype;
  uint32_t file_type;  // llama_ftype of llama.h
};
constexpr TargetType kTargets[] = {{"f32", DType::F32, 0},    {"f16", DType::F16, 1},
                                   {"bf16", DType::BF16, 32}, {"q8_0", DType::Q8_0, 7},
                                   {"q4_1", DType::Q4_1, 3},  {"q4_0", DType::Q4_0, 2}};

const TargetType& target_type(const std::string& name) {
  for (const TargetType& t : kTargets) {
    if (name == t.name) return t;
  }
  throw UsageError("--type {}: known are f32, f16, bf16, q8_0, q4_1 and q4_0", name);
}

// A tensor of the file to be written. `read` gives rows [begin, end) as float32; `raw`: its bytes
// are there already.
struct Outgoing {
  TensorSpec spec;
  std::function<void(int64_t begin, int64_t end, float* to)> read;
  const TensorInfo* raw = nullptr;
};

DType type_of(const std::string& gguf, const std::vector<int64_t>& shape,
              const TargetType& target) {
  if (shape.size() < 2 || gguf.starts_with("position_embd")) return DType::F32;
  const bool four = target.dtype == DType::Q4_0 || target.dtype == DType::Q4_1;
  const bool table = gguf == "token_embd.weight" || gguf == "output.weight";
  const DType dtype = four && table ? DType::Q8_0 : target.dtype;
  return shape.back() % dtype_info(dtype).block == 0 ? dtype : DType::F16;
}

// ----------------------------------------------------------------------------------------------
// from GGUF: everything stays but the types

std::vector<Outgoing> tensors_of_gguf(const GgufFile& file, const TargetType& target) {
  std::vector<Outgoing> out;
  for (const TensorInfo& t : file.tensors) {
    Outgoing one;
    one.spec = {t.name, t.dtype, t.shape};
    const DType wanted = type_of(t.name, t.shape, target);
    if (t.shape.size() < 2 || wanted == t.dtype) {
      one.raw = &t;
    } else if (!can_dequantize(t.dtype)) {
      throw Error("{}: tensor {} is stored as {}, which Heed does not read", file.path, t.name,
                  dtype_name(t.dtype));
    } else {
      one.spec.dtype = wanted;
      one.read = [&t](int64_t begin, int64_t end, float* to) {
        dequantize_rows(t, begin, end, to);
      };
    }
    out.push_back(std::move(one));
  }
  return out;
}

GgufMetadata metadata_of_gguf(const GgufFile& file) {
  GgufMetadata metadata;
  for (const auto& [key, value] : file.values) {
    if (!key.starts_with("split.") && key != "general.alignment") metadata.copy(key, value);
  }
  return metadata;
}

// ----------------------------------------------------------------------------------------------
// from other formats

// The name of the architecture in GGUF, which has no Mistral: its files are Llama's.
std::string gguf_architecture(const ModelConfig& c, const std::string& path) {
  const auto refuse = [&](const std::string& why) {
    throw Error("{}: cannot be written as GGUF: {}", path, why);
  };
  if (!c.mixers.empty()) {
    refuse(fmt::format("layer {} has the mixer {}", c.mixers.begin()->first,
                       c.mixers.begin()->second.id));
  }
  if (c.family == "gpt2") refuse("GPT-2 is not written yet");
  if (c.activation != "silu") refuse("llama.cpp knows this architecture with silu alone");
  if (std::any_of(c.windows.begin(), c.windows.end(), [](int64_t w) { return w > 0; })) {
    refuse("llama.cpp has no sliding window for this architecture");
  }
  if (c.rope.type == "dynamic" || c.rope.type == "longrope") {
    refuse("rotary scaling \"" + c.rope.type + "\" has no keys there");
  }
  if (c.rope.attention_factor != 0 || c.rope.mscale != 0 || c.rope.mscale_all_dim != 0 ||
      !c.rope.truncate) {
    refuse("its rotary scaling has a factor on cos and sin that has no key there");
  }
  return c.family == "mistral" ? "llama" : c.family;
}

// Divisors of the frequencies for Llama 3's scaling, which GGUF keeps as a tensor.
std::vector<float> rope_divisors(const ModelConfig& c) {
  RopeConfig plain = c.rope;
  plain.type = "default";
  const auto inverse = [&](const RopeConfig& rope) {
    return rope_frequencies(rope, c.head_dim, c.max_position, 0).inverse;
  };
  const at::Tensor divisors = inverse(plain).div(inverse(c.rope)).contiguous();
  const float* values = divisors.const_data_ptr<float>();
  return {values, values + divisors.numel()};
}

GgufMetadata metadata_of(const ModelSource& source, const std::string& arch) {
  const ModelConfig& c = source.config();
  GgufMetadata m;
  m.string("general.architecture", arch);
  m.string("general.type", "model");
  m.string("general.name", std::filesystem::path(source.path()).stem().string());
  const auto integer = [&](const char* key, int64_t value) {
    m.integer(arch + "." + key, static_cast<uint32_t>(value));
  };
  const auto real = [&](const char* key, double value) {
    m.real(arch + "." + key, static_cast<float>(value));
  };
  integer("block_count", c.layers);
  integer("context_length", c.max_position);
  integer("embedding_length", c.hidden);
  integer("feed_forward_length", c.intermediate);
  integer("attention.head_count", c.heads);
  integer("attention.head_count_kv", c.kv_heads);
  integer("attention.key_length", c.head_dim);
  integer("attention.value_length", c.head_dim);
  real("attention.layer_norm_rms_epsilon", c.norm_eps);
  integer("vocab_size", c.vocab);
  integer("rope.dimension_count", c.rotary_dims());
  real("rope.freq_base", c.rope.base);
  if (c.rope.type == "linear" || c.rope.type == "yarn") {
    m.string(arch + ".rope.scaling.type", c.rope.type);
    real("rope.scaling.factor", c.rope.factor);
  }
  if (c.rope.type == "yarn") {
    integer("rope.scaling.original_context_length",
            c.rope.original_max_position > 0 ? c.rope.original_max_position : c.max_position);
    real("rope.scaling.yarn_beta_fast", c.rope.beta_fast);
    real("rope.scaling.yarn_beta_slow", c.rope.beta_slow);
  }
  const auto there = [&](const char* name) {
    std::error_code ignored;
    return std::filesystem::exists(source.path() + "/" + name, ignored);
  };
  if (there("tokenizer.json")) {
    write_gguf_tokenizer(source.path(), c.vocab, m);
  } else if (there("tokenizer.model")) {
    throw Error("{}: a SentencePiece model is not written to GGUF yet; put a tokenizer.json there",
                source.path());
  } else {
    m.string("tokenizer.ggml.model", "no_vocab");  // as llama.cpp calls it
  }
  return m;
}

// Rows of q and k as llama.cpp's Llama has them: row 2 i + s of a head is row s R/2 + i here.
at::Tensor interleaved(const at::Tensor& rows, int64_t heads, int64_t turned) {
  const at::Tensor split = rows.unflatten(0, {heads, -1});
  const at::Tensor pairs = split.narrow(1, 0, turned).unflatten(1, {2, turned / 2});
  return at::cat(
             {pairs.transpose(1, 2).flatten(1, 2), split.narrow(1, turned, split.size(1) - turned)},
             1)
      .flatten(0, 1)
      .contiguous();
}

std::vector<Outgoing> tensors_of(const ModelSource& source, const std::string& arch,
                                 const TargetType& target) {
  const ModelConfig& c = source.config();
  std::vector<Outgoing> out;
  for (const auto& [name, shape] : Decoder::shapes(c)) {
    Outgoing one;
    const std::string gguf = ModelSource::gguf_name(name);
    one.spec = {gguf, type_of(gguf, shape, target), shape};
    const int part = heed::TensorName(name).qkv();
    const int64_t heads = part == 0 ? c.heads : part == 1 ? c.kv_heads : 0;
    const bool turns = arch == "llama" && heads > 0 && name.find("_proj.") != std::string::npos;
    // A tensor at a time: a matrix of a layer, at most the embedding.
    auto values = std::make_shared<at::Tensor>();
    one.read = [&source, &c, name, shape, heads, turns, values](int64_t begin, int64_t end,
                                                                float* to) {
      if (!values->defined()) {
        *values = at::empty(shape, at::kFloat);
        source.read(name, *values);
        if (turns) *values = interleaved(*values, heads, c.rotary_dims());
      }
      const int64_t width = shape.back(), rows = values->numel() / width;
      std::copy_n(values->const_data_ptr<float>() + begin * width, (end - begin) * width, to);
      if (end == rows) values->reset();
    };
    out.push_back(std::move(one));
  }
  if (c.rope.type == "llama3") {
    Outgoing one;
    const std::vector<float> divisors = rope_divisors(c);
    one.spec = {"rope_freqs.weight", DType::F32, {static_cast<int64_t>(divisors.size())}};
    one.read = [divisors](int64_t, int64_t, float* to) {
      std::copy(divisors.begin(), divisors.end(), to);
    };
    out.push_back(std::move(one));
  }
  return out;
}

// ----------------------------------------------------------------------------------------------

void write_tensor(const Outgoing& t, GgufWriter& writer) {
  if (t.raw) return writer.write(t.spec.name, t.raw->data, t.raw->bytes);
  const int64_t width = t.spec.shape.back();
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < t.spec.shape.size(); ++i) rows *= t.spec.shape[i];
  const DTypeInfo& info = dtype_info(t.spec.dtype);
  const int64_t row_bytes = width / info.block * info.bytes;
  const int64_t chunk = std::max<int64_t>(1, (int64_t{1} << 22) / std::max<int64_t>(width, 1));
  std::vector<float> values;
  std::vector<std::byte> bytes;
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    values.resize(static_cast<size_t>(count * width));
    bytes.resize(static_cast<size_t>(count * row_bytes));
    t.read(begin, begin + count, values.data());
    at::parallel_for(0, count, 16, [&](int64_t first, int64_t last) {
      quantise(t.spec.dtype, values.data() + first * width, (last - first) * width,
               bytes.data() + first * row_bytes);
    });
    writer.write(t.spec.name, bytes.data(), bytes.size());
  }
}

}  // namespace

std::vector<std::string> quantised_types() {
  std::vector<std::string> names;
  for (const TargetType& t : kTargets) names.emplace_back(t.name);
  return names;
}

QuantizeResult quantize_model(const std::string& model, const std::string& type,
                              const std::string& out, Progress& progress) {
  const TargetType& target = target_type(type);
  const ModelSource source = ModelSource::open(resolve_model(model, progress));
  Decoder::check(source);
  std::vector<Outgoing> tensors;
  GgufMetadata metadata;
  if (source.gguf()) {
    metadata = metadata_of_gguf(*source.gguf());
    tensors = tensors_of_gguf(*source.gguf(), target);
  } else {
    const std::string arch = gguf_architecture(source.config(), source.path());
    metadata = metadata_of(source, arch);
    tensors = tensors_of(source, arch, target);
  }
  metadata.integer("general.file_type", target.file_type);
  metadata.integer("general.quantization_version", 2);
  QuantizeResult result;
  std::vector<TensorSpec> specs;
  for (const Outgoing& t : tensors) {
    specs.push_back(t.spec);
    result.parameters += count_elements(t.spec.shape).value_or(0);
  }
  GgufWriter writer(out, metadata, specs);
  progress.begin("writing", static_cast<int64_t>(tensors.size()));
  for (const Outgoing& t : tensors) {
    write_tensor(t, writer);
    progress.step(++result.tensors);
  }
  writer.finish();
  progress.end();
  for (const TensorSpec& s : specs) result.bytes += count_bytes(s.shape, s.dtype).value_or(0);
  return result;
}

}  // namespace heed
