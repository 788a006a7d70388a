#include "train/config.h"

#include <toml++/toml.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <set>
#include <sstream>
#include <type_traits>

#include "io/error.h"
#include "io/text_file.h"

namespace heed::train {
namespace {

// Calls v(key, value, meaning) for every key: the one list that reading, writing and the
// documentation share. Sections stand together.
template <typename Config, typename Visitor>
void visit(Config& c, Visitor&& v) {
  v("name", c.name, "name of the run, for lists of runs");
  v("out", c.out, "run folder; empty: runs/NAME");
  v("seed", c.seed, "of weights, order of the text, and recall text");
  v("device", c.device, "cpu or cuda");
  v("dtype", c.dtype,
    "of the computation: float32, bfloat16, or auto (bfloat16 on cuda, float32 on cpu); weights "
    "that are trained and the optimiser's state are float32 always");
  v("nondeterministic", c.nondeterministic,
    "allow kernels whose result differs from run to run (faster on cuda)");
  v("records", c.records, "SQLite file of all runs; empty: $HEED_RECORDS or runs/records.sqlite");

  v("model.from", c.model.from,
    "model folder to go on from; empty: random weights by the keys below");
  v("model.family", c.model.family, "llama, mistral, qwen2 or qwen3");
  v("model.hidden", c.model.hidden, "width of the residual stream");
  v("model.intermediate", c.model.intermediate, "width of the MLP");
  v("model.layers", c.model.layers, "number of layers");
  v("model.heads", c.model.heads, "query heads");
  v("model.kv_heads", c.model.kv_heads, "key-value heads; divides heads");
  v("model.head_dim", c.model.head_dim, "size of a head");
  v("model.tied", c.model.tied, "the output matrix is the embedding matrix");
  v("model.rope_base", c.model.rope_base, "base of the rotary embedding");
  v("model.norm_eps", c.model.norm_eps, "epsilon of the norms");
  v("model.mixers", c.model.mixers,
    "layers with another mixer than softmax attention: \"3\" = { mixer = \"gla\", options = {} }");

  v("tokenizer.path", c.tokenizer.path,
    "tokenizer.json or a folder that holds one; empty: model.from's, else one is trained on "
    "data.train and kept in the run folder");
  v("tokenizer.vocab_size", c.tokenizer.vocab_size, "tokens of a tokenizer that is trained");

  v("data.train", c.data.train, "text files, plain or .xz; ${NAME} is an environment variable");
  v("data.valid", c.data.valid, "held-out files for the validation loss; never trained on");
  v("data.test", c.data.test, "held-out files measured once, at the end");
  v("data.separator", c.data.separator,
    "line between two documents of a file; empty: a file is one document");
  v("data.valid_documents", c.data.valid_documents,
    "documents of data.train to hold out when data.valid is empty");
  v("data.cache", c.data.cache, "folder of token files; empty: OUT/tokens");
  v("data.length", c.data.length, "tokens of a row, the context that is trained");
  v("data.recall", c.data.recall, "share of rows that are synthetic recall text, 0 to 1");
  v("data.recall_kinds", c.data.recall_kinds,
    "shares of passkeys, key-value lists, repeated passages, associative recall among them");

  v("train.steps", c.train.steps, "optimiser steps");
  v("train.rows", c.train.rows, "rows of data.length tokens a step");
  v("train.rows_per_pass", c.train.rows_per_pass,
    "rows a forward and backward pass; gradients accumulate over the passes of a step; 0: all");
  v("train.lr", c.train.lr, "learning rate after warm-up");
  v("train.min_lr", c.train.min_lr, "final learning rate, as a fraction of lr");
  v("train.warmup", c.train.warmup, "steps of linear warm-up");
  v("train.schedule", c.train.schedule,
    "cosine, or wsd (warm-up, stable, then linear decay over the last steps)");
  v("train.decay", c.train.decay, "wsd: share of the steps that decay");
  v("train.beta1", c.train.beta1, "AdamW");
  v("train.beta2", c.train.beta2, "AdamW");
  v("train.eps", c.train.eps, "AdamW");
  v("train.weight_decay", c.train.weight_decay, "AdamW; on matrices alone, not on vectors");
  v("train.clip", c.train.clip, "largest norm of the gradient; 0: no clipping");
  v("train.minutes", c.train.minutes,
    "save and stop after this time, to go on with --resume; 0: no limit");

  v("validation.every", c.validation.every, "steps between validations; 0: at the end only");
  v("validation.rows", c.validation.rows, "rows that the validation loss is the mean of");
  v("validation.recall_samples", c.validation.recall_samples,
    "passkey questions at every validation; 0: none");

  v("checkpoint.every", c.checkpoint.every, "steps between checkpoints; 0: at the end only");
  v("checkpoint.keep", c.checkpoint.keep, "checkpoints that are kept");
}

const char* type_name(const int64_t&) { return "an integer"; }
const char* type_name(const double&) { return "a finite number"; }
const char* type_name(const bool&) { return "true or false"; }
const char* type_name(const std::string&) { return "text in quotes"; }
const char* type_name(const std::vector<std::string>&) { return "a list of texts"; }
const char* type_name(const std::vector<double>&) { return "a list of finite numbers"; }
const char* type_name(const Json&) { return "a table"; }

Json to_json(const toml::node& node) {
  if (const auto* table = node.as_table()) {
    Json object = Json::object();
    for (const auto& [key, value] : *table) object[std::string(key.str())] = to_json(value);
    return object;
  }
  if (const auto* array = node.as_array()) {
    Json list = Json::array();
    for (const auto& value : *array) list.push_back(to_json(value));
    return list;
  }
  if (const auto value = node.value_exact<int64_t>()) return *value;
  if (const auto value = node.value_exact<double>()) return *value;
  if (const auto value = node.value_exact<bool>()) return *value;
  if (const auto value = node.value_exact<std::string>()) return *value;
  throw UsageError("dates and times have no place here");
}

bool read(const toml::node& node, int64_t& out) {
  const auto value = node.value_exact<int64_t>();
  if (value) out = *value;
  return value.has_value();
}
bool read(const toml::node& node, double& out) {
  const auto value = node.value<double>();
  if (!node.is_number() || !value || !std::isfinite(*value)) return false;
  out = *value;
  return true;
}
bool read(const toml::node& node, bool& out) {
  const auto value = node.value_exact<bool>();
  if (value) out = *value;
  return value.has_value();
}
bool read(const toml::node& node, std::string& out) {
  const auto value = node.value_exact<std::string>();
  if (value) out = *value;
  return value.has_value();
}
bool read(const toml::node& node, Json& out) {
  if (!node.is_table()) return false;
  out = to_json(node);
  return true;
}
template <typename T>
bool read(const toml::node& node, std::vector<T>& out) {
  const auto* array = node.as_array();
  if (!array) return false;
  out.clear();
  for (const auto& element : *array) {
    T value;
    if (!read(element, value)) return false;
    out.push_back(std::move(value));
  }
  return true;
}

std::string quoted(const std::string& text) {
  std::ostringstream out;
  out << toml::value<std::string>(text);
  return out.str();
}
std::string print(const int64_t& value) { return fmt::format("{}", value); }
std::string print(const double& value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}
std::string print(const bool& value) { return value ? "true" : "false"; }
std::string print(const std::string& value) { return quoted(value); }
template <typename T>
std::string print(const std::vector<T>& values) {
  std::string text = "[";
  for (size_t n = 0; n < values.size(); ++n) text += (n ? ", " : "") + print(values[n]);
  return text + "]";
}
std::string print(const Json& value) {
  if (value.is_object()) {
    std::string text = "{";
    for (const auto& [key, item] : value.items()) {
      text += (text.size() > 1 ? ", " : " ") + quoted(key) + " = " + print(item);
    }
    return text + (text.size() > 1 ? " }" : "}");
  }
  if (value.is_array()) {
    std::string text = "[";
    for (const auto& item : value) text += (text.size() > 1 ? ", " : "") + print(item);
    return text + "]";
  }
  if (value.is_number_integer()) return print(value.get<int64_t>());
  if (value.is_number()) return print(value.get<double>());
  if (value.is_boolean()) return print(value.get<bool>());
  return print(value.get<std::string>());
}

// ${NAME} by the environment.
void expand(std::string& text, const std::string& key, const std::string& file) {
  for (size_t at; (at = text.find("${")) != std::string::npos;) {
    const size_t end = text.find('}', at);
    if (end == std::string::npos) throw UsageError("{}: {}: \"${{\" without \"}}\"", file, key);
    const std::string name = text.substr(at + 2, end - at - 2);
    const char* value = std::getenv(name.c_str());
    if (value == nullptr || std::string_view(value).find("${") != std::string_view::npos) {
      throw UsageError("{}: {}: the environment variable {} is not set", file, key, name);
    }
    text.replace(at, end + 1 - at, value);
  }
}

void insert_override(toml::table& root, const std::string& setting) {
  const size_t equals = setting.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw UsageError("--set takes KEY=VALUE, not \"{}\"", setting);
  }
  const std::string key = setting.substr(0, equals), value = setting.substr(equals + 1);
  toml::table parsed;
  try {
    parsed = toml::parse("value = " + value);
  } catch (const toml::parse_error&) {
    parsed.insert_or_assign("value", value);  // bare text
  }
  toml::table* table = &root;
  size_t begin = 0;
  for (size_t dot; (dot = key.find('.', begin)) != std::string::npos; begin = dot + 1) {
    const std::string part = key.substr(begin, dot - begin);
    if (!table->contains(part)) table->insert_or_assign(part, toml::table{});
    table = (*table)[part].as_table();
    if (table == nullptr) throw UsageError("--set {}: \"{}\" is not a section", key, part);
  }
  parsed["value"].visit(
      [&](auto&& node) { table->insert_or_assign(key.substr(begin), std::move(node)); });
}

void check_known(const toml::table& table, const std::string& prefix,
                 const std::set<std::string>& keys, const std::set<std::string>& sections,
                 const std::string& file) {
  for (const auto& [name, node] : table) {
    const std::string key = prefix + std::string(name.str());
    if (keys.contains(key)) continue;
    const auto line = node.source().begin.line;
    if (sections.contains(key) && node.is_table()) {
      check_known(*node.as_table(), key + ".", keys, sections, file);
      continue;
    }
    throw UsageError("{}{}: unknown key \"{}\"; heed train --keys lists all keys", file,
                     line ? fmt::format(":{}", line) : "", key);
  }
}

void check_ranges(const TrainConfig& c, const std::string& file) {
  constexpr int64_t kMost = int64_t{1} << 24;  // of what no estimate of memory counts
  auto need = [&](bool good, const char* key, const char* what) {
    if (!good) throw UsageError("{}: {} must be {}", file, key, what);
  };
  need(c.device == "cpu" || c.device == "cuda", "device", "cpu or cuda");
  need(c.dtype == "auto" || c.dtype == "float32" || c.dtype == "bfloat16", "dtype",
       "auto, float32 or bfloat16");
  need(c.seed >= 0, "seed", "0 or more");
  need(!c.data.train.empty(), "data.train", "a list of at least one text file");
  for (const auto* held : {&c.data.valid, &c.data.test}) {
    for (const auto& name : *held) {
      for (const auto& train : c.data.train) {
        need(name != train, "data.valid and data.test", "files that data.train does not name");
      }
    }
  }
  need(c.data.length >= 2, "data.length", "at least 2");
  need(c.data.valid_documents >= 0, "data.valid_documents", "0 or more");
  need(c.data.recall >= 0 && c.data.recall <= 1, "data.recall", "between 0 and 1");
  double shares = 0;
  bool negative = false;
  for (const double share : c.data.recall_kinds) {
    shares += share;
    negative = negative || share < 0;
  }
  need(c.data.recall_kinds.size() == 4 && shares > 0 && !negative, "data.recall_kinds",
       "four shares, 0 or more, not all 0");
  need(c.tokenizer.vocab_size >= 258, "tokenizer.vocab_size", "at least 258");
  need(c.train.steps >= 1, "train.steps", "at least 1");
  need(c.train.rows >= 1, "train.rows", "at least 1");
  need(c.train.rows_per_pass >= 0 &&
           (c.train.rows_per_pass == 0 || c.train.rows % c.train.rows_per_pass == 0),
       "train.rows_per_pass", "0 or a divisor of train.rows");
  need(c.train.lr > 0, "train.lr", "above 0");
  need(c.train.min_lr >= 0 && c.train.min_lr <= 1, "train.min_lr", "between 0 and 1");
  need(c.train.warmup >= 0, "train.warmup", "0 or more");
  need(c.train.schedule == "cosine" || c.train.schedule == "wsd", "train.schedule",
       "cosine or wsd");
  need(c.train.decay >= 0 && c.train.decay <= 1, "train.decay", "between 0 and 1");
  need(c.train.beta1 >= 0 && c.train.beta1 < 1, "train.beta1", "in [0, 1)");
  need(c.train.beta2 >= 0 && c.train.beta2 < 1, "train.beta2", "in [0, 1)");
  need(c.train.eps > 0, "train.eps", "above 0");
  need(c.train.weight_decay >= 0, "train.weight_decay", "0 or more");
  need(c.train.clip >= 0, "train.clip", "0 or more");
  need(c.train.minutes >= 0, "train.minutes", "0 or more");
  need(c.validation.every >= 0, "validation.every", "0 or more");
  need(c.validation.rows >= 1 && c.validation.rows <= kMost, "validation.rows",
       "from 1 to 16777216");
  need(c.validation.recall_samples >= 0 && c.validation.recall_samples <= kMost,
       "validation.recall_samples", "from 0 to 16777216");
  need(c.checkpoint.every >= 0, "checkpoint.every", "0 or more");
  need(c.checkpoint.keep >= 1, "checkpoint.keep", "at least 1");
}

}  // namespace

TrainConfig parse_config_text(const std::string& text, const std::string& file,
                              const std::vector<std::string>& overrides) {
  toml::table root;
  try {
    root = toml::parse(text, file);
  } catch (const toml::parse_error& e) {
    throw UsageError("{}:{}: {}", file, e.source().begin.line, e.description());
  }
  std::map<std::string, std::string> bare_text;
  for (const auto& setting : overrides) {
    insert_override(root, setting);
    const size_t equals = setting.find('=');
    bare_text[setting.substr(0, equals)] = setting.substr(equals + 1);
  }
  TrainConfig config;
  std::set<std::string> keys, sections;
  visit(config, [&](const std::string& key, auto& value, const char*) {
    keys.insert(key);
    if (const size_t dot = key.find('.'); dot != std::string::npos) {
      sections.insert(key.substr(0, dot));
    }
    const auto node = root.at_path(key);
    if (!node) return;
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string>) {
      // --set name=2024 is text where the key holds text.
      const auto bare = bare_text.find(key);
      if (bare != bare_text.end() && !node.is_string()) {
        value = bare->second;
        return;
      }
    }
    if (!read(*node.node(), value)) {
      const auto line = node.node()->source().begin.line;
      throw UsageError("{}{}: {} must be {}", file, line ? fmt::format(":{}", line) : "", key,
                       type_name(value));
    }
  });
  check_known(root, "", keys, sections, file);
  if (config.out.empty()) config.out = "runs/" + config.name;
  auto expand_all = [&](std::vector<std::string>& names, const char* key) {
    for (auto& name : names) expand(name, key, file);
  };
  expand_all(config.data.train, "data.train");
  expand_all(config.data.valid, "data.valid");
  expand_all(config.data.test, "data.test");
  expand(config.data.cache, "data.cache", file);
  expand(config.out, "out", file);
  expand(config.records, "records", file);
  expand(config.model.from, "model.from", file);
  expand(config.tokenizer.path, "tokenizer.path", file);
  check_ranges(config, file);
  return config;
}

TrainConfig read_config(const std::string& path, const std::vector<std::string>& overrides) {
  return parse_config_text(read_text_file(path), path, overrides);
}

std::string config_to_toml(const TrainConfig& config) {
  std::string text = "# Every key of this run, defaults too. heed train reads it back.\n";
  std::string section;
  visit(config, [&](const std::string& key, const auto& value, const char* meaning) {
    const size_t dot = key.find('.');
    const std::string own = dot == std::string::npos ? "" : key.substr(0, dot);
    if (own != section) {
      section = own;
      text += fmt::format("\n[{}]\n", section);
    }
    text += fmt::format("# {}\n{} = {}\n", meaning,
                        dot == std::string::npos ? key : key.substr(dot + 1), print(value));
  });
  return text;
}

Json config_to_json(const TrainConfig& config) {
  Json json = Json::object();
  visit(config, [&](const std::string& key, const auto& value, const char*) {
    const size_t dot = key.find('.');
    if (dot == std::string::npos) {
      json[key] = value;
    } else {
      json[key.substr(0, dot)][key.substr(dot + 1)] = value;
    }
  });
  return json;
}

std::string config_table() {
  std::string text = "| key | default | meaning |\n| --- | --- | --- |\n";
  const TrainConfig defaults;
  visit(defaults, [&](const std::string& key, const auto& value, const char* meaning) {
    text += fmt::format("| `{}` | `{}` | {} |\n", key, print(value), meaning);
  });
  return text;
}

}  // namespace heed::train
