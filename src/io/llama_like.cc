// See llama_like.h.
#include "io/llama_like.h"

#include <algorithm>

#include "io/describe.h"
#include "io/error.h"

namespace heed {
namespace {

// Both generations: rope_theta and rope_scaling at the top, or everything inside rope_parameters.
RopeConfig parse_rope(const ConfigReader& top) {
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
  const ConfigReader r(*object, top.name() + ": " + key);
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
void parse_rotary_dims(const ConfigReader& r, ModelConfig& c) {
  double part = r.number("partial_rotary_factor", 1);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (r.has(key) && r.at(key).is_object()) {
      part = ConfigReader(r.at(key), r.name() + ": " + key).number("partial_rotary_factor", part);
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

}  // namespace

void LlamaLike::read_windows(const ConfigReader& r, ModelConfig& c) const {
  c.windows.assign(c.layers, 0);
  if (r.has("sliding_window") && r.at("sliding_window").is_array()) {
    c.windows = r.per_layer("sliding_window", c.layers);
    return;
  }
  int64_t window = this->window(r);
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
  const int64_t first = first_window(r);
  if (first < 0) throw Error("{}: \"max_window_layers\" is negative", r.name());
  for (int64_t l = first; l < c.layers; ++l) c.windows[l] = window;
}

void LlamaLike::read(const ConfigReader& r, ModelConfig& c) const {
  c.vocab = r.required("vocab_size");
  c.hidden = r.required("hidden_size");
  c.layers = r.required("num_hidden_layers");
  check_size(r.name(), "the number of layers", c.layers, kMostLayers);
  c.intermediate = r.size("intermediate_size", c.layers);
  c.heads = r.size("num_attention_heads", c.layers);
  c.kv_heads = r.size("num_key_value_heads", c.layers, default_kv_heads(c));
  if (!r.has("head_dim") && default_head_dim() == 0 && c.heads > 0 && c.hidden % c.heads != 0) {
    throw Error(
        "{}: \"hidden_size\" {} is not a multiple of \"num_attention_heads\" {}, and \"head_dim\" "
        "is missing",
        r.name(), c.hidden, c.heads);
  }
  c.head_dim = r.integer("head_dim", default_head_dim() > 0 ? default_head_dim()
                                     : c.heads > 0          ? c.hidden / c.heads
                                                            : 0);
  c.max_position = r.integer("max_position_embeddings", default_context());
  c.norm_eps = r.number("rms_norm_eps", 1e-6);
  c.activation = activation_name(r.text("hidden_act", "silu"), r.name());
  c.tied = r.flag("tie_word_embeddings", false);
  read_own(r, c);
  c.rope = parse_rope(r);
  parse_rotary_dims(r, c);
  read_windows(r, c);
}

void LlamaLike::write(const ModelConfig& c, Json& out) const {
  out["hidden_size"] = c.hidden;
  out["intermediate_size"] = c.intermediate;
  out["num_hidden_layers"] = c.layers;
  out["num_attention_heads"] = c.heads;
  out["num_key_value_heads"] = c.kv_heads;
  out["head_dim"] = c.head_dim;
  out["max_position_embeddings"] = c.max_position;
  out["rms_norm_eps"] = c.norm_eps;
  out["hidden_act"] = c.activation == "gelu_tanh" ? "gelu_pytorch_tanh" : c.activation;
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
  if (any && !(all && all_slide())) {
    Json types = Json::array();
    for (int64_t w : c.windows) types.push_back(w > 0 ? "sliding_attention" : "full_attention");
    out["layer_types"] = std::move(types);
  }
  write_own(c, out);
}

void LlamaLike::write_slides(const ModelConfig& c, Json& out) {
  out["use_sliding_window"] =
      std::any_of(c.windows.begin(), c.windows.end(), [](int64_t w) { return w > 0; });
}

void LlamaLike::read_gguf(const GgufFile& file, ModelConfig& c) const {
  const std::string arch(name());
  c.norm_eps = file.real(arch + ".attention.layer_norm_rms_epsilon");
  c.qkv_bias = file.find("blk.0.attn_q.bias") != nullptr;
  c.out_bias = file.find("blk.0.attn_output.bias") != nullptr;
  c.mlp_bias = file.find("blk.0.ffn_up.bias") != nullptr;
  if (file.find("blk.0.ffn_gate_exps.weight") || file.integer(arch + ".expert_count", 0) > 0) {
    throw Error("{}: mixtures of experts are not supported", file.path);
  }
  check_config(c, file.path);  // sizes first: lists are made from them
  read_gguf_rope(file, arch, c);
}

}  // namespace heed
