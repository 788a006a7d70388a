// ModelConfig from the metadata of GGUF files and from llama2.c headers; see model_config.h. Keys:
// github.com/ggml-org/ggml/blob/master/docs/gguf.md.
#include <algorithm>

#include "io/architecture.h"
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

}  // namespace

ModelConfig config_from_gguf(const GgufFile& file) {
  const std::string arch = file.string("general.architecture");
  ModelConfig c;
  const Architecture* family = find_architecture(arch);
  if (family == nullptr || !family->in_gguf()) {
    throw Error("{}: architecture \"{}\" is unknown; Heed reads {} from GGUF", file.path,
                printable(arch, 60), architecture_names(true));
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
  family->read_gguf(file, c);
  check_config(c, file.path);
  return c;
}

}  // namespace heed
