// config.json in and out; see model_config.h. What families call their keys: architecture.h.
#include "io/model_config.h"

#include <algorithm>
#include <cmath>

#include "io/architecture.h"
#include "io/describe.h"

namespace heed {
namespace {

void parse_heed(const Json& heed, const std::string& path, ModelConfig& c) {
  const ConfigReader r(heed, path + ": heed");
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
    const ConfigReader layer(value, path + ": heed.layers." + key);
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

Json base_config(const ModelConfig& c, const std::string& dtype) {
  Json out = c.source.is_object() ? c.source : Json::object();
  if (out.contains("model_type") && out["model_type"] == "heed") out = Json(out["heed"]["base"]);
  out.erase("heed");
  out["model_type"] = c.family;
  const Architecture* family = find_architecture(c.family);
  if (family) out["architectures"] = Json::array({family->model_class()});
  out.erase("dtype");
  out["torch_dtype"] = dtype;
  out["vocab_size"] = c.vocab;
  out["tie_word_embeddings"] = c.tied;
  if (!c.eos.empty()) out["eos_token_id"] = c.eos.size() == 1 ? Json(c.eos[0]) : Json(c.eos);
  if (c.bos >= 0) out["bos_token_id"] = c.bos;
  if (c.pad >= 0) out["pad_token_id"] = c.pad;
  if (family) family->write(c, out);
  return out;
}

}  // namespace

ModelConfig parse_config(const Json& given, const std::string& path) {
  const ConfigReader outer(given, path);
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
    family = ConfigReader(*object, path + ": heed.base").text("model_type", "");
  }
  const ConfigReader r(*object, heed_type ? path + ": heed.base" : path);
  ModelConfig c;
  c.family = family;
  if (family.empty()) {
    throw Error("{}: \"model_type\" is missing; is this the config.json of a decoder model?", path);
  }
  const Architecture* architecture = find_architecture(family);
  if (architecture == nullptr) {
    throw Error("{}: model_type \"{}\" is unknown; Heed reads {}", path, printable(family, 60),
                architecture_names());
  }
  architecture->read(r, c);
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
  if (const Architecture* family = find_architecture(c.family)) family->check(c, path);
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
