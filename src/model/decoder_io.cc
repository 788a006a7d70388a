// The decoder's weights: laid out, drawn at random, read and written; see decoder.h.
#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>

#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "mixer/common/channel.h"
#include "mixer/common/mlp_layer.h"
#include "model/decoder.h"
#include "model/hub.h"
#include "model/source.h"

namespace heed {
namespace {

namespace fs = std::filesystem;

bool begins_with_one_of(const std::string& name, std::initializer_list<const char*> prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const char* prefix) { return name.rfind(prefix, 0) == 0; });
}

// A parameter of a layer's mixer: kept projections keep their names, new ones are the mixer's.
std::string mixer_name(int64_t layer, const std::string& name) {
  const bool kept =
      begins_with_one_of(name, {"q_proj.", "k_proj.", "v_proj.", "o_proj.", "q_norm.", "k_norm."});
  return fmt::format("model.layers.{}.{}.{}", layer, kept ? "self_attn" : "mixer", name);
}

// The same of its channel layer: an MLP's, or those of what a mixer brings along.
std::string channel_name(int64_t layer, const std::string& name) {
  const bool mlp = begins_with_one_of(name, {"gate_proj.", "up_proj.", "down_proj."});
  return fmt::format("model.layers.{}.{}.{}", layer, mlp ? "mlp" : "mixer.channel", name);
}

}  // namespace

Decoder::Decoder(ModelConfig config, const LoadOptions& options)
    : config_(std::move(config)), options_(options) {
  const ModelConfig& c = config_;
  context_ = options.context > 0 ? options.context : c.max_position;
  if (c.learned_positions && context_ > c.max_position) {
    throw UsageError("a context of {} was asked for, the model has positions for {}", context_,
                     c.max_position);
  }
  const auto tensor_options = at::TensorOptions().dtype(options.dtype).device(options.device);
  std::optional<ShapesOnly> shapes_only;
  if (options.device.is_meta()) shapes_only.emplace();
  const auto matrix = [&](int64_t out, int64_t in) {
    return Weight{at::empty({out, in}, tensor_options)};
  };
  const auto norm = [&] {
    const auto vector = [&] { return at::empty({c.hidden}, tensor_options); };
    return Norm{vector(), c.layer_norm ? vector() : at::Tensor(), c.norm_eps, c.layer_norm};
  };
  if (!c.learned_positions) {
    rope_ = std::make_shared<Rope>(
        rope_frequencies(c.rope, c.head_dim, c.max_position, options.context), context_);
  }
  embed_ = matrix(c.vocab, c.hidden);
  if (!c.tied) head_ = matrix(c.vocab, c.hidden);
  if (c.learned_positions) positions_ = at::empty({c.max_position, c.hidden}, tensor_options);
  final_norm_ = norm();
  mixer::LayerConfig layer;
  layer.hidden = c.hidden;
  layer.heads = c.heads;
  layer.kv_heads = c.kv_heads;
  layer.head_dim = c.head_dim;
  layer.rope = rope_;
  layer.norm_eps = c.norm_eps;
  layer.qk_norm = c.qk_norm;
  layer.qkv_bias = c.qkv_bias;
  layer.out_bias = c.out_bias;
  layer.tensors = tensor_options;
  layer.drawn = false;
  const mixer::MlpConfig mlp{c.hidden,    c.intermediate, c.activation,
                             c.gated_mlp, c.mlp_bias,     tensor_options};
  for (int64_t l = 0; l < c.layers; ++l) {
    Block b{norm(), norm(), nullptr, nullptr};
    const auto other = c.mixers.find(l);
    layer.layer = l;
    layer.window = c.windows[l];
    layer.options = other == c.mixers.end() ? Json::object() : other->second.options;
    const std::string id = other == c.mixers.end() ? "softmax" : other->second.id;
    b.mixer = mixer::make_layer(id, layer);
    const mixer::HeadsView* heads = b.mixer->heads();
    if (heads && (heads->heads != c.heads || heads->kv_heads != c.kv_heads)) {
      throw UsageError(
          "layer {} has {} query and {} key/value heads, the model {} and {}: plans and probes "
          "need "
          "the same number in every layer",
          l, heads->heads, heads->kv_heads, c.heads, c.kv_heads);
    }
    for (auto& [name, tensor] : b.mixer->parameters()) tensor = tensor.to(tensor_options);
    b.channel = mixer::make_channel(id, layer);
    if (!b.channel) b.channel = std::make_unique<mixer::MlpLayer>(mlp);
    for (auto& [name, tensor] : b.channel->parameters()) tensor = tensor.to(tensor_options);
    blocks_.push_back(std::move(b));
  }
}

void Decoder::visit(const std::function<void(const std::string&, at::Tensor&)>& visit) {
  const auto optional = [&](const std::string& name, at::Tensor& t) {
    if (t.defined()) visit(name, t);
  };
  visit("model.embed_tokens.weight", embed_.data);
  optional("model.embed_positions.weight", positions_);
  for (size_t l = 0; l < blocks_.size(); ++l) {
    Block& b = blocks_[l];
    const std::string p = fmt::format("model.layers.{}.", l);
    visit(p + "input_layernorm.weight", b.in.weight);
    optional(p + "input_layernorm.bias", b.in.bias);
    for (auto& [name, tensor] : b.mixer->parameters()) {
      visit(mixer_name(static_cast<int64_t>(l), name), tensor);
    }
    visit(p + "post_attention_layernorm.weight", b.mid.weight);
    optional(p + "post_attention_layernorm.bias", b.mid.bias);
    for (auto& [name, tensor] : b.channel->parameters()) {
      visit(channel_name(static_cast<int64_t>(l), name), tensor);
    }
  }
  visit("model.norm.weight", final_norm_.weight);
  optional("model.norm.bias", final_norm_.bias);
  optional("lm_head.weight", head_.data);
}

std::vector<std::pair<std::string, at::Tensor>> Decoder::parameters() const {
  std::vector<std::pair<std::string, at::Tensor>> out;
  // visit() hands out slots for loading; here they are only read.
  const_cast<Decoder*>(this)->visit(
      [&](const std::string& name, at::Tensor& tensor) { out.emplace_back(name, tensor); });
  return out;
}

void Decoder::requires_grad(bool on) {
  visit([&](const std::string&, at::Tensor& tensor) { tensor.requires_grad_(on); });
}

Decoder Decoder::bare(const ModelConfig& config) {
  const at::NoGradGuard no_grad;
  LoadOptions nowhere;
  nowhere.device = at::kMeta;
  return Decoder(config, nowhere);
}

std::vector<std::pair<std::string, std::vector<int64_t>>> Decoder::shapes(
    const ModelConfig& config) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> out;
  bare(config).visit([&](const std::string& name, at::Tensor& tensor) {
    out.emplace_back(name, tensor.sizes().vec());
  });
  return out;
}

void Decoder::check(const ModelSource& source) {
  for (const auto& [name, shape] : shapes(source.config())) source.check(name, shape);
}

Decoder Decoder::load(const std::string& model, const LoadOptions& options) {
  const at::NoGradGuard no_grad;
  const ModelSource source = ModelSource::open(resolve_model(model));
  // Everything is checked before memory is taken: a broken configuration may ask for any amount.
  check(source);
  LoadOptions cpu = options;
  cpu.device = at::kCPU;
  Decoder out(source.config(), cpu);
  out.visit([&](const std::string& name, at::Tensor& tensor) { source.read(name, tensor); });
  out.path_ = source.path();
  out.hash_ = source.hash();
  if (!options.device.is_cpu()) out.move_to(options.device);
  return out;
}

Decoder Decoder::random(const ModelConfig& config, uint64_t seed, const LoadOptions& options) {
  const at::NoGradGuard no_grad;
  check_config(config, "the model's configuration");
  at::manual_seed(seed);
  LoadOptions cpu = options;
  cpu.device = at::kCPU;
  Decoder out(config, cpu);
  const double residual = 0.02 / std::sqrt(2.0 * static_cast<double>(config.layers));
  out.visit([&](const std::string& name, at::Tensor& tensor) {
    if (name.find(".mixer.") != std::string::npos) return;  // the layer has drawn its own
    if (tensor.dim() == 2) {
      const bool writes = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
      tensor.copy_(at::normal(0.0, writes ? residual : 0.02, tensor.sizes()));
    } else {
      tensor.fill_(name.ends_with(".bias") ? 0 : 1);
    }
  });
  if (!options.device.is_cpu()) out.move_to(options.device);
  return out;
}

void Decoder::move_to(const at::Device& device) {
  const at::NoGradGuard no_grad;
  options_.device = device;
  visit([&](const std::string&, at::Tensor& tensor) { tensor = tensor.to(device); });
  for (Block& b : blocks_) {
    b.mixer->moved();
    b.channel->moved();
  }
}

namespace {

struct Stored {
  std::string name;
  at::Tensor value;
};

// A GPT-2 model's tensors under the names and in the layout of transformers.
std::vector<Stored> gpt2_tensors(const std::vector<std::pair<std::string, at::Tensor>>& parameters,
                                 const ModelConfig& config) {
  std::map<std::string, at::Tensor> by_name(parameters.begin(), parameters.end());
  std::vector<Stored> out = {
      {"transformer.wte.weight", by_name.at("model.embed_tokens.weight")},
      {"transformer.wpe.weight", by_name.at("model.embed_positions.weight")}};
  for (int64_t l = 0; l < config.layers; ++l) {
    const std::string from = fmt::format("model.layers.{}.", l),
                      to = fmt::format("transformer.h.{}.", l);
    for (const char* kind : {"weight", "bias"}) {
      const auto get = [&](const char* module) { return by_name.at(from + module + "." + kind); };
      const auto matrix = [&](const at::Tensor& t) { return t.dim() == 2 ? t.t() : t; };
      const auto put = [&](const char* module, const at::Tensor& t) {
        out.push_back({to + module + "." + kind, t});
      };
      put("ln_1", get("input_layernorm"));
      if (!config.mixers.contains(l)) {
        put("attn.c_attn", matrix(at::cat({get("self_attn.q_proj"), get("self_attn.k_proj"),
                                           get("self_attn.v_proj")})));
        put("attn.c_proj", matrix(get("self_attn.o_proj")));
      }
      put("ln_2", get("post_attention_layernorm"));
      put("mlp.c_fc", matrix(get("mlp.up_proj")));
      put("mlp.c_proj", matrix(get("mlp.down_proj")));
    }
    for (const auto& [name, tensor] : parameters) {
      const bool owned =
          name.rfind(from + "mixer.", 0) == 0 || name.rfind(from + "self_attn.", 0) == 0;
      if (config.mixers.contains(l) && owned) out.push_back({name, tensor});
    }
  }
  out.push_back({"transformer.ln_f.weight", by_name.at("model.norm.weight")});
  out.push_back({"transformer.ln_f.bias", by_name.at("model.norm.bias")});
  if (!config.tied) out.push_back({"lm_head.weight", by_name.at("lm_head.weight")});
  return out;
}

DType file_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::F32;
    case at::kHalf:
      return DType::F16;
    case at::kBFloat16:
      return DType::BF16;
    default:
      throw UsageError("weights are written as float32, float16 or bfloat16, not {}",
                       c10::toString(type));
  }
}

const char* dtype_text(at::ScalarType type) {
  return type == at::kHalf ? "float16" : type == at::kBFloat16 ? "bfloat16" : "float32";
}

}  // namespace

void Decoder::save(const std::string& folder, const SaveOptions& options) const {
  const at::NoGradGuard no_grad;
  const DType dtype = file_dtype(options.dtype);
  make_folders(folder);
  std::vector<Stored> tensors;
  if (config_.family == "gpt2") {
    tensors = gpt2_tensors(parameters(), config_);
  } else {
    for (const auto& [name, tensor] : parameters()) tensors.push_back({name, tensor});
  }
  // Shards in order, each filled up to its limit.
  std::vector<std::vector<const Stored*>> shards(1);
  int64_t used = 0, total = 0;
  for (const Stored& t : tensors) {
    const int64_t bytes = t.value.numel() * static_cast<int64_t>(c10::elementSize(options.dtype));
    if (options.shard_bytes > 0 && used > 0 && used + bytes > options.shard_bytes) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(&t);
    used += bytes;
    total += bytes;
  }
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        shards.size() == 1 ? "model.safetensors"
                           : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::vector<TensorSpec> specs;
    for (const Stored* t : shards[i]) {
      specs.push_back({t->name, dtype, t->value.sizes().vec()});
      map[t->name] = name;
    }
    SafetensorsWriter writer(folder + "/" + name, specs, {{"format", "pt"}});
    for (const Stored* t : shards[i]) {
      const at::Tensor value = t->value.to(at::kCPU, options.dtype).contiguous();
      writer.write(t->name, value.const_data_ptr(), value.nbytes());
    }
    writer.finish();
  }
  std::error_code ignored;
  const std::string index = folder + "/model.safetensors.index.json";
  if (shards.size() > 1) {
    write_text_atomic(index, pretty_json({{"metadata", {{"total_size", total}}},
                                          {"weight_map", std::move(map)}}));
  } else {
    fs::remove(index, ignored);
  }
  write_text_atomic(folder + "/config.json",
                    pretty_json(config_to_json(config_, dtype_text(options.dtype))));

  const std::string from = options.tokenizer_from.empty() ? path_ : options.tokenizer_from;
  Json generation = Json::object();
  if (!from.empty() && fs::is_directory(from, ignored)) {
    if (fs::exists(from + "/generation_config.json", ignored)) {
      generation = read_json(from + "/generation_config.json");
    }
    for (const char* name :
         {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
          "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja"}) {
      const std::string source = from + "/" + name, target = folder + "/" + name;
      if (!fs::exists(source, ignored) || fs::equivalent(source, target, ignored)) continue;
      const MappedFile file(source);
      write_text_atomic(target,
                        {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
    }
  }
  if (!config_.eos.empty()) {
    generation["eos_token_id"] = config_.eos.size() == 1 ? Json(config_.eos[0]) : Json(config_.eos);
  }
  if (config_.bos >= 0) generation["bos_token_id"] = config_.bos;
  if (config_.pad >= 0) generation["pad_token_id"] = config_.pad;
  if (!generation.empty())
    write_text_atomic(folder + "/generation_config.json", pretty_json(generation));
}

}  // namespace heed
