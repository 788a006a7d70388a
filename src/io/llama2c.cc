#include "io/llama2c.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "io/describe.h"
#include "io/error.h"

namespace heed {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 28;  // of any number in the header
constexpr int64_t kMaxLayers = 4096;

// Hands out the tensors of a checkpoint in the order of the file.
class Layout {
 public:
  Layout(std::span<const std::byte> bytes, TensorFile& file) : bytes_(bytes), file_(file) {}

  // The next `shape` float32 values, named `name`; nothing is kept for an empty name.
  void tensor(std::string name, std::vector<int64_t> shape) {
    const std::optional<int64_t> size = count_bytes(shape, DType::F32);
    if (!size || static_cast<uint64_t>(*size) > bytes_.size() - at_) {
      throw Error(
          "{}: its header asks for more than the {} bytes of the file at tensor '{}' {}; "
          "the file is cut short or no llama2.c checkpoint",
          printable(file_.path), bytes_.size(), name, shape_text(shape));
    }
    TensorInfo info;
    info.name = std::move(name);
    info.shape = std::move(shape);
    info.data = bytes_.data() + at_;
    info.bytes = static_cast<size_t>(*size);
    at_ += info.bytes;
    if (!info.name.empty()) file_.add(std::move(info));
  }

  // One tensor for each layer: "model.layers.N.NAME.weight".
  void per_layer(int64_t layers, const char* name, const std::vector<int64_t>& shape) {
    for (int64_t n = 0; n < layers; ++n) {
      tensor(fmt::format("model.layers.{}.{}.weight", n, name), shape);
    }
  }

  size_t left() const { return bytes_.size() - at_; }

 private:
  std::span<const std::byte> bytes_;
  TensorFile& file_;
  size_t at_ = 7 * sizeof(int32_t);
};

}  // namespace

namespace {

constexpr size_t kHeader = 7 * sizeof(int32_t);

// The sizes of the header; why they are none in `wrong`.
Llama2cModel read_sizes(std::span<const std::byte> bytes, std::string& wrong) {
  int32_t header[7];
  static_assert(sizeof header == kHeader);
  std::memcpy(header, bytes.data(), sizeof header);
  Llama2cModel model;
  model.dim = header[0];
  model.hidden_dim = header[1];
  model.layers = header[2];
  model.heads = header[3];
  model.kv_heads = header[4];
  model.tied = header[5] > 0;
  model.vocab = std::abs(int64_t{header[5]});
  model.context = header[6];
  for (const int64_t size : {model.dim, model.hidden_dim, model.layers, model.heads, model.kv_heads,
                             model.vocab, model.context}) {
    if (size <= 0 || size > kMaxSize) {
      wrong = fmt::format("the size {} in the header is not one of a llama2.c checkpoint", size);
      return model;
    }
  }
  if (model.layers > kMaxLayers || model.dim % model.heads != 0 ||
      model.heads % model.kv_heads != 0 || model.dim / model.heads % 2 != 0) {
    wrong = fmt::format(
        "{} layers of {} heads over {} KV heads and {} channels are not a llama2.c checkpoint",
        model.layers, model.heads, model.kv_heads, model.dim);
  }
  return model;
}

}  // namespace

bool is_llama2c_header(std::span<const std::byte> bytes) {
  std::string wrong;
  if (bytes.size() >= kHeader) read_sizes(bytes, wrong);
  return bytes.size() >= kHeader && wrong.empty();
}

Llama2cModel parse_llama2c(std::span<const std::byte> bytes, const std::string& name) {
  if (bytes.size() < kHeader) {
    throw Error("{}: {} bytes are too few for a llama2.c checkpoint", printable(name),
                bytes.size());
  }
  std::string wrong;
  Llama2cModel model = read_sizes(bytes, wrong);
  if (!wrong.empty()) throw Error("{}: {}", printable(name), wrong);
  model.file.path = name;
  const int64_t head_dim = model.dim / model.heads;
  const int64_t kv_dim = model.kv_heads * head_dim;
  Layout layout(bytes, model.file);
  layout.tensor("model.embed_tokens.weight", {model.vocab, model.dim});
  layout.per_layer(model.layers, "input_layernorm", {model.dim});
  layout.per_layer(model.layers, "self_attn.q_proj", {model.dim, model.dim});
  layout.per_layer(model.layers, "self_attn.k_proj", {kv_dim, model.dim});
  layout.per_layer(model.layers, "self_attn.v_proj", {kv_dim, model.dim});
  layout.per_layer(model.layers, "self_attn.o_proj", {model.dim, model.dim});
  layout.per_layer(model.layers, "post_attention_layernorm", {model.dim});
  layout.per_layer(model.layers, "mlp.gate_proj", {model.hidden_dim, model.dim});
  layout.per_layer(model.layers, "mlp.down_proj", {model.dim, model.hidden_dim});
  layout.per_layer(model.layers, "mlp.up_proj", {model.hidden_dim, model.dim});
  layout.tensor("model.norm.weight", {model.dim});
  layout.tensor("", {2, model.context, head_dim / 2});  // cosines and sines, left over
  if (!model.tied) layout.tensor("lm_head.weight", {model.vocab, model.dim});
  if (layout.left() != 0) {
    throw Error("{}: {} bytes follow the last tensor; this is not a llama2.c checkpoint",
                printable(name), layout.left());
  }
  return model;
}

Llama2cModel open_llama2c(const std::string& path) {
  auto mapping = std::make_shared<const MappedFile>(path);
  Llama2cModel model = parse_llama2c(mapping->bytes(), path);
  model.file.mappings.push_back(std::move(mapping));
  return model;
}

Llama2cVocab parse_llama2c_vocab(std::span<const std::byte> bytes, const std::string& name) {
  const auto fail = [&](const char* what) -> void {
    throw Error("{}: not a llama2.c tokenizer: {}", printable(name), what);
  };
  int32_t longest = 0;
  if (bytes.size() < sizeof longest) fail("it is too short");
  std::memcpy(&longest, bytes.data(), sizeof longest);
  if (longest <= 0) fail("the longest piece has no length");
  Llama2cVocab vocab;
  for (size_t at = sizeof longest; at < bytes.size();) {
    float score = 0;
    int32_t length = 0;
    if (bytes.size() - at < sizeof score + sizeof length) fail("it ends inside a piece");
    std::memcpy(&score, bytes.data() + at, sizeof score);
    std::memcpy(&length, bytes.data() + at + sizeof score, sizeof length);
    at += sizeof score + sizeof length;
    if (length < 0 || length > longest) fail("a piece is longer than the longest");
    if (static_cast<size_t>(length) > bytes.size() - at) fail("it ends inside a piece");
    if (!std::isfinite(score)) fail("a score is not a number");
    vocab.pieces.emplace_back(reinterpret_cast<const char*>(bytes.data()) + at,
                              static_cast<size_t>(length));
    vocab.scores.push_back(score);
    at += static_cast<size_t>(length);
  }
  if (vocab.pieces.empty()) fail("it has no pieces");
  return vocab;
}

Llama2cVocab open_llama2c_vocab(const std::string& path) {
  const MappedFile file(path);
  return parse_llama2c_vocab(file.bytes(), path);
}

}  // namespace heed
