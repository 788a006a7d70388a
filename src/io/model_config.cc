// config.json in and out; see config.h. Defaults are those of each family's configuration class in
// transformers.
#include "io/model_config.h"

#include <algorithm>
#include <cmath>

#include "io/describe.h"

namespace heed {
namespace {

constexpr int64_t kMostLayers = 10'000;
constexpr int64_t kMostHidden = int64_t{1} << 20;
constexpr int64_t kMostPositions = int64_t{1} << 32;

// Sizes that others are made from are checked before that.
void check_size(const std::string& path, const char* what, int64_t value, int64_t most) {
  if (value < 1 || value > most) {
    throw Error("{}: {} is {}; 1 to {} was expected", path, what, value, most);
  }
}

// One JSON object of the file, with the name under which messages know it. A key that is null
// counts as absent.
class Reader {
 public:
  Reader(const Json& object, std::string name) : object_(object), name_(std::move(name)) {
    if (!object_.is_object()) {
      throw Error("{}: must be a JSON object, found {}", name_, object_.type_name());
    }
  }

  bool mentions(const char* key) const { return object_.contains(key); }
  bool has(const char* key) const { return find_field(object_, key, name_) != nullptr; }
  const Json& at(const char* key) const { return get_field(object_, key, name_); }
  int64_t required(const char* key) const { return get_int(object_, key, name_); }
  int64_t integer(const char* key, int64_t fallback) const {
    return get_int(object_, key, name_, fallback);
  }
  double number(const char* key, double fallback) const {
    return get_float(object_, key, name_, fallback);
  }
  // A size, or a list of it for each layer, all equal.
  int64_t size(const char* key, int64_t layers) const {
    if (!at(key).is_array()) return required(key);
    const std::vector<int64_t> sizes = per_layer(key, layers);
    for (int64_t l = 1; l < layers; ++l) {
      if (sizes[l] != sizes[0]) {
        throw Error(
            "{}: \"{}\" of layer {} is {}, of layer 0 {}; models whose layers differ are not read",
            name_, key, l, sizes[l], sizes[0]);
      }
    }
    return sizes[0];
  }
  int64_t size(const char* key, int64_t layers, int64_t fallback) const {
    return has(key) ? size(key, layers) : fallback;
  }
  // A list with one number for each layer; null counts as 0.
  std::vector<int64_t> per_layer(const char* key, int64_t layers) const {
    const Json& list = at(key);
    if (!list.is_array() || static_cast<int64_t>(list.size()) != layers) {
      throw Error("{}: \"{}\" is not a list of {} entries, one a layer", name_, key, layers);
    }
    std::vector<int64_t> out;
    for (const Json& value : list) out.push_back(value.is_null() ? 0 : as_int(value, key, name_));
    return out;
  }
  bool flag(const char* key, bool fallback) const {
    return get_bool(object_, key, name_, fallback);
  }
  std::string text(const char* key, const std::string& fallback) const {
    return get_string(object_, key, name_, fallback);
  }
  std::vector<double> numbers(const char* key) const {
    return has(key) ? get_floats(object_, key, name_) : std::vector<double>{};
  }
  // One id or a list of ids.
  std::vector<int64_t> ids(const char* key) const {
    const Json* v = find_field(object_, key, name_);
    if (!v) return {};
    if (v->is_array()) return get_ints(object_, key, name_);
    return {get_int(object_, key, name_)};
  }
  const std::string& name() const { return name_; }

 private:
  const Json& object_;
  std::string name_;
};

std::string activation_name(const std::string& name, const std::string& path) {
  if (name == "silu" || name == "swish") return "silu";
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_tanh") return "gelu_tanh";
  if (name == "gelu" || name == "relu") return name;
  throw Error("{}: activation \"{}\" is unknown; known are silu, gelu, gelu_new and relu", path,
              printable(name, 60));
}

// Both generations: rope_theta and rope_scaling at the top, or everything inside rope_parameters.
RopeConfig parse_rope(const Reader& top) {
  RopeConfig rope;
  const char* key = top.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  rope.base = top.number("rope_theta", rope.base);
  if (!top.has(key)) return rope;
  const Json* object = &top.at(key);
  // Newer files may give parameters for each layer type; they must agree.
  if (object->is_object() && object->contains("full_attention")) {
    if (object->contains("sliding_attention") &&
        (*object)["sliding_attention"] != (*object)["full_attention"]) {
      throw Error("{}: \"{}\" differs between layer types, which is not supported", top.name(),
                  key);
    }
    object = &(*object)["full_attention"];
  }
  const Reader r(*object, top.name() + ": " + key);
  rope.base = r.number("rope_theta", rope.base);
  rope.type = r.text("rope_type", r.text("type", "default"));
  if (rope.type == "su") rope.type = "longrope";
  const std::vector<std::string> known = {"default", "linear", "dynamic",
                                          "yarn",    "llama3", "longrope"};
  if (std::find(known.begin(), known.end(), rope.type) == known.end()) {
    throw Error(
        "{}: rotary scaling \"{}\" is unknown; known are default, linear, dynamic, yarn, llama3 "
        "and longrope",
        top.name(), printable(rope.type, 60));
  }
  if (rope.type == "default") return rope;
  if (rope.type != "longrope" && !r.has("factor")) {
    throw Error("{}: \"{}.factor\" is missing", top.name(), key);
  }
  rope.original_max_position = r.integer("original_max_position_embeddings",
                                         top.integer("original_max_position_embeddings", 0));
  rope.factor = r.number("factor", 0);
  if (rope.type == "longrope" && rope.factor == 0) {
    rope.factor = rope.original_max_position > 0
                      ? static_cast<double>(top.integer("max_position_embeddings", 0)) /
                            static_cast<double>(rope.original_max_position)
                      : 1;
  }
  rope.low_freq_factor = r.number("low_freq_factor", rope.low_freq_factor);
  rope.high_freq_factor = r.number("high_freq_factor", rope.high_freq_factor);
  rope.beta_fast = r.number("beta_fast", rope.beta_fast);
  rope.beta_slow = r.number("beta_slow", rope.beta_slow);
  rope.truncate = r.flag("truncate", true);
  rope.attention_factor = r.number("attention_factor", 0);
  rope.mscale = r.number("mscale", 0);
  rope.mscale_all_dim = r.number("mscale_all_dim", 0);
  rope.short_factor = r.numbers("short_factor");
  rope.long_factor = r.numbers("long_factor");
  return rope;
}

// The part of each head that turns: the first int(head_dim * partial_rotary_factor) dimensions, as
// transformers counts them.
void parse_rotary_dims(const Reader& r, ModelConfig& c) {
  double part = r.number("partial_rotary_factor", 1);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (r.has(key) && r.at(key).is_object()) {
      part = Reader(r.at(key), r.name() + ": " + key).number("partial_rotary_factor", part);
    }
  }
  if (!(part > 0 && part <= 1)) {
    throw Error("{}: \"partial_rotary_factor\" is {}; a number above 0 and up to 1 was expected",
                r.name(), part);
  }
  if (part == 1) return;
  check_size(r.name(), "the head dimension", c.head_dim, kMostHidden);
  const auto dims = static_cast<int32_t>(static_cast<double>(c.head_dim) * part);
  if (dims == c.head_dim) return;
  if (dims < 2 || dims % 2 != 0) {
    throw Error(
        "{}: \"partial_rotary_factor\" {} turns {} of {} dimensions; an even number from 2 up is "
        "needed",
        r.name(), part, dims, c.head_dim);
  }
  c.rope.dims = dims;
}

void parse_windows(const Reader& r, ModelConfig& c) {
  c.windows.assign(c.layers, 0);
  if (r.has("sliding_window") && r.at("sliding_window").is_array()) {
    c.windows = r.per_layer("sliding_window", c.layers);
    return;
  }
  int64_t window = 0;
  if (c.family == "mistral") {
    window = r.mentions("sliding_window") ? r.integer("sliding_window", 0) : 4096;
  } else if (c.family == "qwen2" || c.family == "qwen3") {
    if (r.flag("use_sliding_window", false)) window = r.integer("sliding_window", 4096);
  }
  if (window < 0) throw Error("{}: \"sliding_window\" is negative", r.name());
  if (r.has("layer_types")) {
    const Json& types = r.at("layer_types");
    if (!types.is_array() || static_cast<int64_t>(types.size()) != c.layers) {
      throw Error("{}: \"layer_types\" is not a list of {} entries, one a layer", r.name(),
                  c.layers);
    }
    if (window == 0) window = r.integer("sliding_window", 0);
    for (int64_t l = 0; l < c.layers; ++l) {
      if (types[l] == "sliding_attention") {
        if (window <= 0)
          throw Error("{}: layer {} slides, but \"sliding_window\" is missing", r.name(), l);
        c.windows[l] = window;
      } else if (types[l] != "full_attention") {
        throw Error(
            "{}: \"layer_types\" of layer {} is {}; known are full_attention and "
            "sliding_attention",
            r.name(), l, printable(types[l].dump(), 60));
      }
    }
    return;
  }
  const int64_t first = c.family == "mistral" ? 0 : r.integer("max_window_layers", 28);
  if (first < 0) throw Error("{}: \"max_window_layers\" is negative", r.name());
  for (int64_t l = first; l < c.layers; ++l) c.windows[l] = window;
}

void parse_gpt2(const Reader& r, ModelConfig& c) {
  c.vocab = r.integer("vocab_size", 50257);
  c.hidden = r.integer("n_embd", 768);
  c.layers = r.integer("n_layer", 12);
  check_size(r.name(), "the number of layers", c.layers, kMostLayers);
  check_size(r.name(), "the hidden size", c.hidden, kMostHidden);
  c.heads = c.kv_heads = r.integer("n_head", 12);
  if (c.heads > 0) c.head_dim = c.hidden / c.heads;
  c.intermediate = r.integer("n_inner", 4 * c.hidden);
  c.max_position = r.integer("n_positions", r.integer("n_ctx", 1024));
  c.norm_eps = r.number("layer_norm_epsilon", 1e-5);
  c.activation = activation_name(r.text("activation_function", "gelu_new"), r.name());
  c.layer_norm = c.learned_positions = true;
  c.gated_mlp = false;
  c.qkv_bias = c.out_bias = c.mlp_bias = true;
  c.tied = r.flag("tie_word_embeddings", true);
  if (!r.flag("scale_attn_weights", true) || r.flag("scale_attn_by_inverse_layer_idx", false)) {
    throw Error(
        "{}: GPT-2's other attention scales are not supported (scale_attn_weights must be true, "
        "scale_attn_by_inverse_layer_idx false)",
        r.name());
  }
  c.windows.assign(c.layers, 0);
}

void parse_llama_like(const Reader& r, ModelConfig& c) {
  c.vocab = r.required("vocab_size");
  c.hidden = r.required("hidden_size");
  c.layers = r.required("num_hidden_layers");
  check_size(r.name(), "the number of layers", c.layers, kMostLayers);
  c.intermediate = r.size("intermediate_size", c.layers);
  c.heads = r.size("num_attention_heads", c.layers);
  c.kv_heads = r.size("num_key_value_heads", c.layers, c.family == "mistral" ? 8 : c.heads);
  if (!r.has("head_dim") && c.family != "qwen3" && c.heads > 0 && c.hidden % c.heads != 0) {
    throw Error(
        "{}: \"hidden_size\" {} is not a multiple of \"num_attention_heads\" {}, and \"head_dim\" "
        "is missing",
        r.name(), c.hidden, c.heads);
  }
  c.head_dim = r.integer("head_dim", c.family == "qwen3" ? 128
                                     : c.heads > 0       ? c.hidden / c.heads
                                                         : 0);
  const int64_t default_context = c.family == "llama"     ? 2048
                                  : c.family == "mistral" ? 131072
                                                          : 32768;
  c.max_position = r.integer("max_position_embeddings", default_context);
  c.norm_eps = r.number("rms_norm_eps", 1e-6);
  c.activation = activation_name(r.text("hidden_act", "silu"), r.name());
  c.tied = r.flag("tie_word_embeddings", false);
  c.qk_norm = c.family == "qwen3";
  if (c.family == "qwen2") {
    c.qkv_bias = true;
  } else if (c.family != "mistral") {
    c.qkv_bias = c.out_bias = r.flag("attention_bias", false);
    if (c.family == "llama") c.mlp_bias = r.flag("mlp_bias", false);
  }
  c.rope = parse_rope(r);
  parse_rotary_dims(r, c);
  parse_windows(r, c);
}

void parse_heed(const Json& heed, const std::string& path, ModelConfig& c) {
  const Reader r(heed, path + ": heed");
  if (const int64_t version = r.integer("version", 1); version != 1) {
    throw Error("{}: \"heed.version\" is {}; this program reads version 1", path, version);
  }
  if (r.has("plan")) c.plan = r.at("plan");
  if (!r.has("layers")) return;
  if (!r.at("layers").is_object()) throw Error("{}: \"heed.layers\" is not a JSON object", path);
  for (const auto& [key, value] : r.at("layers").items()) {
    const bool digits =
        !key.empty() && key.size() < 7 &&
        std::all_of(key.begin(), key.end(), [](char ch) { return ch >= '0' && ch <= '9'; });
    if (!digits || std::stoll(key) >= c.layers) {
      throw Error("{}: \"heed.layers\" names layer \"{}\"; layers are 0 to {}", path,
                  printable(key, 60), c.layers - 1);
    }
    const Reader layer(value, path + ": heed.layers." + key);
    MixerConfig mixer;
    mixer.id = layer.text("mixer", "");
    if (mixer.id.empty()) throw Error("{}: \"heed.layers.{}.mixer\" is missing", path, key);
    mixer.options = layer.has("options") ? layer.at("options") : Json::object();
    if (!mixer.options.is_object()) {
      throw Error("{}: \"heed.layers.{}.options\" is not a JSON object", path, key);
    }
    c.mixers[std::stoll(key)] = std::move(mixer);
  }
}

// What the formulas of each kind need to give finite angles (rope.h).
void check_rope(const ModelConfig& c, const std::string& path) {
  const RopeConfig& rope = c.rope;
  const auto need = [&](bool good, const char* key, double value, const char* expected) {
    if (!good)
      throw Error("{}: {} of the rotary embedding is {}; {} was expected", path, key, value,
                  expected);
  };
  const auto positive = [](double v) { return v > 0 && std::isfinite(v); };
  need(positive(rope.base), "\"rope_theta\"", rope.base, "a number above 0");
  need(rope.dims >= 0 && rope.dims <= c.head_dim && rope.dims % 2 == 0, "the number of dimensions",
       static_cast<double>(rope.dims), "an even number up to that of a head");
  if (rope.type == "default") return;
  need(positive(rope.factor), "the scaling factor", rope.factor, "a number above 0");
  need(rope.original_max_position >= 0 && rope.original_max_position <= kMostPositions,
       "\"original_max_position_embeddings\"", static_cast<double>(rope.original_max_position),
       "a context length");
  const int64_t original =
      rope.original_max_position > 0 ? rope.original_max_position : c.max_position;
  const auto factor = [&](const char* key, double value) {
    need(value >= 0 && std::isfinite(value), key, value, "a number from 0 up");
  };
  factor("\"attention_factor\"", rope.attention_factor);
  factor("\"mscale\"", rope.mscale);
  factor("\"mscale_all_dim\"", rope.mscale_all_dim);
  if (rope.type == "dynamic") {
    need(c.rotary_dims() > 2, "the number of dimensions", static_cast<double>(c.rotary_dims()),
         "at least 4 for dynamic scaling");
  } else if (rope.type == "yarn") {
    need(rope.base > 1, "\"rope_theta\"", rope.base, "a number above 1");
    need(positive(rope.beta_fast), "\"beta_fast\"", rope.beta_fast, "a number above 0");
    need(positive(rope.beta_slow), "\"beta_slow\"", rope.beta_slow, "a number above 0");
  } else if (rope.type == "llama3") {
    need(positive(rope.low_freq_factor), "\"low_freq_factor\"", rope.low_freq_factor,
         "a number above 0");
    need(positive(rope.high_freq_factor) && rope.high_freq_factor > rope.low_freq_factor,
         "\"high_freq_factor\"", rope.high_freq_factor, "a number above \"low_freq_factor\"");
  } else if (rope.type == "longrope") {
    const size_t half = static_cast<size_t>(c.rotary_dims() / 2);
    if (rope.short_factor.size() != half || rope.long_factor.size() != half) {
      throw Error("{}: longrope needs short_factor and long_factor of {} numbers", path, half);
    }
    for (const auto* factors : {&rope.short_factor, &rope.long_factor}) {
      for (const double factor : *factors) {
        need(positive(factor), "a frequency's divisor", factor, "a number above 0");
      }
    }
    need(original > 1, "\"original_max_position_embeddings\"", static_cast<double>(original),
         "a context of at least 2");
  }
}

// The factor of which transformers makes rope.dims, which cuts off what is behind the point.
double partial_rotary_factor(const ModelConfig& c) {
  const auto size = static_cast<double>(c.head_dim);
  double part = static_cast<double>(c.rope.dims) / size;
  while (static_cast<int64_t>(size * part) < c.rope.dims) part = std::nextafter(part, 2.0);
  return part;
}

Json rope_to_json(const ModelConfig& c) {
  const RopeConfig& rope = c.rope;
  Json out = {{"rope_type", rope.type}, {"rope_theta", rope.base}};
  if (rope.dims > 0) out["partial_rotary_factor"] = partial_rotary_factor(c);
  if (rope.type == "default") return out;
  out["factor"] = rope.factor;
  if (rope.original_max_position > 0) {
    out["original_max_position_embeddings"] = rope.original_max_position;
  }
  if (rope.type == "llama3") {
    out["low_freq_factor"] = rope.low_freq_factor;
    out["high_freq_factor"] = rope.high_freq_factor;
  }
  if (rope.type == "yarn") {
    out["beta_fast"] = rope.beta_fast;
    out["beta_slow"] = rope.beta_slow;
    if (!rope.truncate) out["truncate"] = false;
    if (rope.mscale != 0) out["mscale"] = rope.mscale;
    if (rope.mscale_all_dim != 0) out["mscale_all_dim"] = rope.mscale_all_dim;
  }
  if (rope.attention_factor != 0) out["attention_factor"] = rope.attention_factor;
  if (!rope.short_factor.empty()) out["short_factor"] = rope.short_factor;
  if (!rope.long_factor.empty()) out["long_factor"] = rope.long_factor;
  return out;
}

const char* architecture(const std::string& family) {
  if (family == "llama") return "LlamaForCausalLM";
  if (family == "mistral") return "MistralForCausalLM";
  if (family == "qwen2") return "Qwen2ForCausalLM";
  if (family == "qwen3") return "Qwen3ForCausalLM";
  return "GPT2LMHeadModel";
}

Json base_config(const ModelConfig& c, const std::string& dtype) {
  Json out = c.source.is_object() ? c.source : Json::object();
  if (out.contains("model_type") && out["model_type"] == "heed") out = Json(out["heed"]["base"]);
  out.erase("heed");
  out["model_type"] = c.family;
  out["architectures"] = Json::array({architecture(c.family)});
  out.erase("dtype");
  out["torch_dtype"] = dtype;
  out["vocab_size"] = c.vocab;
  out["tie_word_embeddings"] = c.tied;
  if (!c.eos.empty()) out["eos_token_id"] = c.eos.size() == 1 ? Json(c.eos[0]) : Json(c.eos);
  if (c.bos >= 0) out["bos_token_id"] = c.bos;
  if (c.pad >= 0) out["pad_token_id"] = c.pad;
  if (c.family == "gpt2") {
    out["n_embd"] = c.hidden;
    out["n_layer"] = c.layers;
    out["n_head"] = c.heads;
    out["n_inner"] = c.intermediate;
    out["n_positions"] = c.max_position;
    out["layer_norm_epsilon"] = c.norm_eps;
    out["activation_function"] = c.activation == "gelu_tanh" ? "gelu_new" : c.activation;
    return out;
  }
  out["hidden_size"] = c.hidden;
  out["intermediate_size"] = c.intermediate;
  out["num_hidden_layers"] = c.layers;
  out["num_attention_heads"] = c.heads;
  out["num_key_value_heads"] = c.kv_heads;
  out["head_dim"] = c.head_dim;
  out["max_position_embeddings"] = c.max_position;
  out["rms_norm_eps"] = c.norm_eps;
  out["hidden_act"] = c.activation == "gelu_tanh" ? "gelu_pytorch_tanh" : c.activation;
  if (c.family == "llama" || c.family == "qwen3") out["attention_bias"] = c.qkv_bias;
  if (c.family == "llama") out["mlp_bias"] = c.mlp_bias;
  // Both generations of keys, so that old and new readers find the same values.
  out["rope_theta"] = c.rope.base;
  const Json rope = rope_to_json(c);
  out["rope_parameters"] = rope;
  out.erase("partial_rotary_factor");
  if (c.rope.dims > 0) out["partial_rotary_factor"] = rope["partial_rotary_factor"];
  out.erase("rope_scaling");
  if (c.rope.type != "default") out["rope_scaling"] = rope;
  const auto slides =
      std::find_if(c.windows.begin(), c.windows.end(), [](int64_t w) { return w > 0; });
  const bool any = slides != c.windows.end();
  const bool all = std::all_of(c.windows.begin(), c.windows.end(), [](int64_t w) { return w > 0; });
  out.erase("layer_types");
  // Windows of several sizes are written as Heed reads them, one a layer; no key of transformers
  // says that.
  const bool several =
      any && std::any_of(slides, c.windows.end(), [&](int64_t w) { return w > 0 && w != *slides; });
  out["sliding_window"] = several ? Json(c.windows) : any ? Json(*slides) : Json(nullptr);
  if (c.family == "qwen2" || c.family == "qwen3") out["use_sliding_window"] = any;
  if (any && !(all && c.family == "mistral")) {
    Json types = Json::array();
    for (int64_t w : c.windows) types.push_back(w > 0 ? "sliding_attention" : "full_attention");
    out["layer_types"] = std::move(types);
  }
  return out;
}

}  // namespace

ModelConfig parse_config(const Json& given, const std::string& path) {
  const Reader outer(given, path);
  std::string family = outer.text("model_type", "");
  const Json* object = &given;
  const bool heed_type = family == "heed";
  if (heed_type) {
    if (!outer.has("heed") || !given["heed"].is_object() || !given["heed"].contains("base")) {
      throw Error(
          "{}: model_type is \"heed\", but \"heed.base\" (the original config.json) is missing",
          path);
    }
    object = &given["heed"]["base"];
    family = Reader(*object, path + ": heed.base").text("model_type", "");
  }
  const Reader r(*object, heed_type ? path + ": heed.base" : path);
  ModelConfig c;
  c.family = family;
  if (family.empty()) {
    throw Error("{}: \"model_type\" is missing; is this the config.json of a decoder model?", path);
  }
  if (family == "gpt2") {
    parse_gpt2(r, c);
  } else if (family == "llama" || family == "mistral" || family == "qwen2" || family == "qwen3") {
    parse_llama_like(r, c);
  } else {
    throw Error(
        "{}: model_type \"{}\" is unknown; Heed reads llama, mistral, qwen2, qwen3 and gpt2", path,
        printable(family, 60));
  }
  c.eos = r.ids("eos_token_id");
  c.bos = r.ids("bos_token_id").empty() ? -1 : r.ids("bos_token_id")[0];
  c.pad = r.ids("pad_token_id").empty() ? -1 : r.ids("pad_token_id")[0];
  c.stored_dtype = r.text("dtype", r.text("torch_dtype", "float32"));
  if (outer.has("heed")) parse_heed(given["heed"], path, c);
  c.source = given;
  check_config(c, path);
  return c;
}

void check_config(const ModelConfig& c, const std::string& path) {
  check_size(path, "the number of layers", c.layers, kMostLayers);
  check_size(path, "the vocabulary size", c.vocab, int64_t{1} << 24);
  check_size(path, "the hidden size", c.hidden, kMostHidden);
  check_size(path, "the intermediate size", c.intermediate, int64_t{1} << 22);
  check_size(path, "the number of heads", c.heads, 4096);
  check_size(path, "the number of key/value heads", c.kv_heads, 4096);
  check_size(path, "the head dimension", c.head_dim, 256);
  check_size(path, "the context length", c.max_position, kMostPositions);
  if (c.heads % c.kv_heads != 0) {
    throw Error("{}: {} query heads are not a multiple of {} key/value heads", path, c.heads,
                c.kv_heads);
  }
  if (!c.learned_positions && c.head_dim % 2 != 0) {
    throw Error("{}: the head dimension {} is odd; rotary embedding needs pairs", path, c.head_dim);
  }
  if (c.family == "gpt2" && c.q_size() != c.hidden) {
    throw Error("{}: \"n_embd\" {} is not a multiple of \"n_head\" {}", path, c.hidden, c.heads);
  }
  if (!(c.norm_eps >= 0 && c.norm_eps < 1)) {
    throw Error("{}: the norms' epsilon is {}", path, c.norm_eps);
  }
  for (const int64_t window : c.windows) {
    if (window < 0 || window > kMostPositions) {
      throw Error("{}: the sliding window is {}; 1 to {} was expected", path, window,
                  kMostPositions);
    }
  }
  check_rope(c, path);
}

int64_t ModelConfig::parameters() const {
  int64_t layer = hidden * (q_size() + 2 * kv_size()) + q_size() * hidden +
                  (gated_mlp ? 3 : 2) * hidden * intermediate + (layer_norm ? 4 : 2) * hidden;
  if (qkv_bias) layer += q_size() + 2 * kv_size();
  if (out_bias) layer += hidden;
  if (mlp_bias) layer += hidden + (gated_mlp ? 2 : 1) * intermediate;
  if (qk_norm) layer += 2 * head_dim;
  int64_t total = layers * layer + vocab * hidden * (tied ? 1 : 2) + (layer_norm ? 2 : 1) * hidden;
  if (learned_positions) total += max_position * hidden;
  return total;
}

Json config_to_json(const ModelConfig& c, const std::string& dtype) {
  Json base = base_config(c, dtype);
  Json heed = Json::object();
  if (!c.mixers.empty()) {
    Json layers = Json::object();
    for (const auto& [layer, mixer] : c.mixers) {
      layers[std::to_string(layer)] = {{"mixer", mixer.id}, {"options", mixer.options}};
    }
    heed["layers"] = std::move(layers);
  }
  if (!c.plan.is_null()) heed["plan"] = c.plan;
  if (heed.empty()) return base;
  heed["version"] = 1;
  if (c.mixers.empty()) {
    base["heed"] = std::move(heed);
    return base;
  }
  heed["base"] = std::move(base);
  return {{"model_type", "heed"}, {"torch_dtype", dtype}, {"heed", std::move(heed)}};
}

std::string canonical_shapes(const ModelConfig& c) {
  Json out = {{"family", c.family},     {"vocab", c.vocab},
              {"hidden", c.hidden},     {"layers", c.layers},
              {"heads", c.heads},       {"kv_heads", c.kv_heads},
              {"head_dim", c.head_dim}, {"intermediate", c.intermediate},
              {"windows", c.windows}};
  if (!c.mixers.empty()) {
    Json mixers = Json::object();
    for (const auto& [layer, mixer] : c.mixers) mixers[std::to_string(layer)] = mixer.id;
    out["mixers"] = std::move(mixers);
  }
  return out.dump();
}

}  // namespace heed
