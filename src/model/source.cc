// See source.h. Names of GGUF tensors: github.com/ggml-org/ggml/blob/master/docs/gguf.md; row order
// of Llama's q and k in GGUF: `permute` of llama.cpp's convert_hf_to_gguf.py.
#include "model/source.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>

#include "io/architecture.h"
#include "io/dequant.h"
#include "io/llama2c.h"
#include "io/model_path.h"
#include "io/safetensors.h"
#include "io/sha256.h"

namespace heed {
namespace {

namespace fs = std::filesystem;

std::string name_in_gguf(const std::string& name, bool fused) {
  static const std::map<std::string, std::string> modules = {
      {"model.embed_tokens", "token_embd"}, {"model.embed_positions", "position_embd"},
      {"model.norm", "output_norm"},        {"lm_head", "output"},
      {"input_layernorm", "attn_norm"},     {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},       {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},  {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"},  {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},        {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  const TensorName parts(name);
  const auto it = modules.find(parts.module);
  if (it == modules.end()) return "";
  const std::string module = fused ? "attn_qkv" : it->second;
  const std::string block = parts.layer >= 0 ? fmt::format("blk.{}.", parts.layer) : "";
  return block + module + "." + parts.kind;
}

// Whether a layer's mixer owns the tensor: such are stored under the names used here.
bool part_of_mixer(const TensorName& parts) {
  return parts.module.rfind("mixer", 0) == 0 || parts.module.rfind("self_attn", 0) == 0;
}

void read_rows(const TensorInfo& tensor, float* out) {
  const int64_t rows = tensor.rows(), size = std::max<int64_t>(tensor.row_size(), 1);
  at::parallel_for(0, rows, std::max<int64_t>(1, 65536 / size), [&](int64_t begin, int64_t end) {
    dequantize_rows(tensor, begin, end, out + begin * size);
  });
}

}  // namespace

std::string ModelSource::gguf_name(const std::string& name) { return name_in_gguf(name, false); }

ModelSource ModelSource::open(const std::string& path) {
  const ModelPlace place = find_model(path);
  ModelSource out;
  out.path_ = place.path;
  switch (place.format) {
    case ModelFormat::kSafetensors:
      out.format_ = "safetensors";
      out.open_folder();
      break;
    case ModelFormat::kGguf:
      out.format_ = "gguf";
      out.gguf_ = std::make_shared<GgufFile>(open_gguf(place.path));
      out.file_ = out.gguf_;
      out.config_ = config_from_gguf(*out.gguf_);
      break;
    case ModelFormat::kLlama2c: {
      out.format_ = "llama2.c";
      Llama2cModel model = open_llama2c(place.path);
      out.config_ = config_from_llama2c(model, place.path);
      out.file_ = std::make_shared<TensorFile>(std::move(model.file));
    }
  }
  out.architecture_ = find_architecture(out.config_.family);
  if (place.format == ModelFormat::kSafetensors) out.settle_head();
  return out;
}

void ModelSource::open_folder() {
  const std::string config = path_ + "/config.json";
  config_ = parse_config(read_json(config), config);
  std::error_code ignored;
  if (const std::string more = path_ + "/generation_config.json"; fs::exists(more, ignored)) {
    const Json generation = read_json(more);
    if (const Json* eos = find_field(generation, "eos_token_id", more)) {
      config_.eos = eos->is_array()
                        ? get_ints(generation, "eos_token_id", more)
                        : std::vector<int64_t>{get_int(generation, "eos_token_id", more)};
    }
  }
  file_ = std::make_shared<TensorFile>(open_safetensors_folder(path_));
}

// As transformers 5 loads a tied model: a stored head that differs from the embedding is kept, and
// a head without an embedding is both.
void ModelSource::settle_head() {
  if (!config_.tied) return;
  const auto head = find("lm_head.weight"), embedding = find("model.embed_tokens.weight");
  if (!head || !embedding) return;
  const TensorInfo &a = *head->tensor, &b = *embedding->tensor;
  if (a.shape != b.shape) {
    config_.tied = false;  // loading then names the shape that is wrong
  } else if (a.dtype == b.dtype) {
    config_.tied = a.data == b.data || std::memcmp(a.data, b.data, a.bytes) == 0;
  } else if (can_dequantize(a.dtype) && can_dequantize(b.dtype)) {
    std::vector<float> x(static_cast<size_t>(a.row_size())), y(x.size());
    for (int64_t r = 0; r < a.rows() && config_.tied; ++r) {
      dequantize_rows(a, r, r + 1, x.data());
      dequantize_rows(b, r, r + 1, y.data());
      config_.tied = x == y;
    }
  }
}

std::vector<std::pair<std::string, int64_t>> ModelSource::stored_types() const {
  std::map<std::string, int64_t> bytes;
  for (const TensorInfo& t : file_->tensors)
    bytes[dtype_name(t.dtype)] += static_cast<int64_t>(t.bytes);
  std::vector<std::pair<std::string, int64_t>> out(bytes.begin(), bytes.end());
  std::sort(out.begin(), out.end(),
            [](const auto& a, const auto& b) { return a.second > b.second; });
  return out;
}

std::optional<ModelSource::Place> ModelSource::find(const std::string& name) const {
  const TensorName parts(name);
  const int part = parts.qkv();
  Place place;
  if (format_ == "gguf") {
    place.tensor = file_->find(name_in_gguf(name, false));
    if (!place.tensor && part >= 0) {
      place.tensor = file_->find(name_in_gguf(name, true));
      place.part = part;
      place.parts = 3;
    }
    if (architecture_->gguf_interleaves() && (part == 0 || part == 1)) {
      place.interleaved_heads = part == 0 ? config_.heads : config_.kv_heads;
    }
  } else if (format_ == "safetensors" &&
             !(config_.mixers.contains(parts.layer) && part_of_mixer(parts))) {
    const StoredTensor stored = architecture_->stored(name);
    place.tensor = file_->find(architecture_->prefix() + stored.name);
    if (!place.tensor) place.tensor = file_->find(stored.name);
    place.part = stored.part;
    place.parts = stored.parts;
    place.transposed = stored.transposed;
  } else {
    place.tensor = file_->find(name);
    if (format_ == "llama2.c" && (part == 0 || part == 1)) {
      place.interleaved_heads = part == 0 ? config_.heads : config_.kv_heads;
    }
  }
  if (!place.tensor && config_.tied && name == "model.embed_tokens.weight") {
    place.tensor = file_->find("lm_head.weight");  // the one of the two that is stored
  }
  if (!place.tensor) return std::nullopt;
  return place;
}

bool ModelSource::has(const std::string& name) const { return find(name).has_value(); }

void ModelSource::check(const std::string& name, at::IntArrayRef shape) const {
  const auto place = find(name);
  if (!place) throw Error("{}: tensor {} is missing", path_, name);
  const TensorInfo& tensor = *place->tensor;
  std::vector<int64_t> expected = shape.vec();
  if (place->parts > 1) expected[0] *= place->parts;
  if (place->transposed) std::reverse(expected.begin(), expected.end());
  if (tensor.shape != expected) {
    throw Error("{}: tensor {} has shape {}, the model needs {}", path_, tensor.name,
                shape_text(tensor.shape), shape_text(expected));
  }
  if (!can_dequantize(tensor.dtype)) {
    throw Error("{}: tensor {} is stored as {}, which Heed does not read", path_, tensor.name,
                dtype_name(tensor.dtype));
  }
}

void ModelSource::read(const std::string& name, const at::Tensor& out) const {
  check(name, out.sizes());
  const auto place = find(name);
  const TensorInfo& tensor = *place->tensor;
  const bool plain = place->parts == 1 && !place->transposed && place->interleaved_heads == 0;
  if (plain && out.scalar_type() == at::kFloat && out.is_contiguous() && out.is_cpu()) {
    read_rows(tensor, out.mutable_data_ptr<float>());
    return;
  }
  at::Tensor values = at::empty(tensor.shape, at::kFloat);
  read_rows(tensor, values.mutable_data_ptr<float>());
  if (place->transposed) values = values.t();
  if (place->parts > 1) values = values.chunk(place->parts, 0)[place->part];
  if (place->interleaved_heads > 0) {
    // Row 2 i + s of a head (pair i, half s) goes to row s R/2 + i, of the R rows that turn.
    const int64_t turned = config_.rotary_dims();
    const at::Tensor heads = values.reshape({place->interleaved_heads, config_.head_dim, -1});
    const at::Tensor pairs = heads.narrow(1, 0, turned).unflatten(1, {turned / 2, 2});
    values = at::cat({pairs.transpose(1, 2).flatten(1, 2),
                      heads.narrow(1, turned, config_.head_dim - turned)},
                     1)
                 .reshape(out.sizes());
  }
  out.copy_(values);
}

std::optional<StoredMatrix> ModelSource::matrix(const std::string& name) const {
  const auto place = find(name);
  if (!place || place->transposed || place->tensor->shape.size() != 2) return std::nullopt;
  StoredMatrix out;
  out.tensor = place->tensor;
  out.out = place->tensor->rows() / place->parts;
  out.first = out.out * place->part;
  out.file = file_;
  if (place->interleaved_heads == 0) return out;
  const int64_t turned = config_.rotary_dims(), size = config_.head_dim;
  for (int64_t r = 0; r < out.out; ++r) {  // as read() moves them
    const int64_t i = r % size, half = turned / 2;
    out.order.push_back(i < turned ? r - i + i % half * 2 + i / half : r);
  }
  return out;
}

std::string ModelSource::hash() const {
  Sha256 sha;
  sha.update(canonical_shapes(config_));
  for (int64_t l = 0; l < config_.layers; ++l) {
    const auto place = find(fmt::format("model.layers.{}.self_attn.k_proj.weight", l));
    if (!place) continue;  // another mixer
    sha.update({reinterpret_cast<const char*>(place->tensor->data),
                std::min<size_t>(place->tensor->bytes, size_t{64} << 10)});
  }
  return sha.hex();
}

}  // namespace heed
