// See layer_options.h.
#include "mixer/common/layer_options.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "io/error.h"
#include "mixer/registry.h"
#include "nn/init.h"

namespace heed::mixer {

LayerOptions::LayerOptions(const std::string& id, const LayerConfig& config)
    : id_(id),
      options_(config.options),
      hidden_(config.hidden),
      heads_(config.heads),
      head_dim_(config.head_dim) {
  if (!options_.is_object() && !options_.is_null()) {
    throw UsageError("mixer {}: its options must be an object", id);
  }
  if (hidden_ < 1) throw UsageError("mixer {}: hidden size is {}, must be positive", id, hidden_);
  heads_ = integer("heads", std::max<int64_t>(config.heads, 1));
  describe("heads", asked_["heads"].expected, "the model's");
  if (heads_ != config.heads) head_dim_ = 0;
  if (head_dim_ == 0) {
    if (hidden_ % heads_ != 0) {
      throw UsageError("mixer {}: hidden size {} is no multiple of its {} heads", id, hidden_,
                       heads_);
    }
    head_dim_ = hidden_ / heads_;
  }
}

const Json* LayerOptions::find(const std::string& key, const std::string& expected,
                               const std::string& fallback) {
  asked_.emplace(key, LayerOption{key, expected, fallback});
  if (!options_.is_object()) return nullptr;
  const auto it = options_.find(key);
  return it == options_.end() || it->is_null() ? nullptr : &*it;
}

void LayerOptions::describe(const std::string& key, const std::string& expected,
                            const std::string& fallback) {
  asked_[key] = {key, expected, fallback};
}

bool LayerOptions::has(const std::string& key) const {
  return options_.is_object() && options_.contains(key) && !options_[key].is_null();
}

int64_t LayerOptions::integer(const std::string& key, int64_t fallback, int64_t least) {
  const std::string expected = fmt::format("a whole number of at least {}", least);
  const Json* value = find(key, expected, fmt::to_string(fallback));
  if (value == nullptr) return fallback;
  if (!value->is_number_integer() || value->get<int64_t>() < least ||
      value->get<int64_t>() > (int64_t{1} << 24)) {
    throw UsageError("mixer {}: option {} is {}, expected {}", id_, key, value->dump(), expected);
  }
  return value->get<int64_t>();
}

double LayerOptions::number(const std::string& key, double fallback, double least) {
  const std::string expected =
      least == -kAny ? std::string("a number") : fmt::format("a number of at least {}", least);
  const Json* value = find(key, expected, fmt::format("{:.6g}", fallback));
  if (value == nullptr) return fallback;
  if (!value->is_number() || !(value->get<double>() >= least)) {
    throw UsageError("mixer {}: option {} is {}, expected {}", id_, key, value->dump(), expected);
  }
  return value->get<double>();
}

double LayerOptions::positive(const std::string& key, double fallback) {
  const Json* value = find(key, "a number above 0", fmt::format("{:.6g}", fallback));
  if (value == nullptr) return fallback;
  if (!value->is_number() || !(value->get<double>() > 0)) {
    throw UsageError("mixer {}: option {} is {}, expected a number above 0", id_, key,
                     value->dump());
  }
  return value->get<double>();
}

bool LayerOptions::flag(const std::string& key, bool fallback) {
  const Json* value = find(key, "true or false", fallback ? "true" : "false");
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    throw UsageError("mixer {}: option {} is {}, expected true or false", id_, key, value->dump());
  }
  return value->get<bool>();
}

std::string LayerOptions::word(const std::string& key, const std::vector<std::string>& words) {
  const Json* value = find(key, fmt::format("{}", fmt::join(words, " or ")), words.front());
  if (value == nullptr) return words.front();
  if (!value->is_string() ||
      std::find(words.begin(), words.end(), value->get<std::string>()) == words.end()) {
    throw UsageError("mixer {}: option {} is {}, expected one of {}", id_, key, value->dump(),
                     fmt::join(words, ", "));
  }
  return value->get<std::string>();
}

std::string LayerOptions::text(const std::string& key) {
  const Json* value = find(key, "a value", "");
  if (value == nullptr) return "";
  const auto one = [&](const Json& x) {
    if (x.is_structured()) {
      throw UsageError("mixer {}: option {} is {}, expected a value or a list of values", id_, key,
                       value->dump());
    }
    return x.is_string() ? x.get<std::string>() : x.dump();
  };
  if (!value->is_array()) return one(*value);
  std::string all;
  for (const Json& x : *value) all += (all.empty() ? "" : "x") + one(x);
  return all;
}

int64_t LayerOptions::head_width(const std::string& key, double fallback) {
  const double factor = number(key, fallback);
  const double width = factor * static_cast<double>(head_dim_);
  if (!(width >= 1) || width != std::floor(width) || width > 65536) {
    throw UsageError(
        "mixer {}: {} {} times head size {} gives {}, expected a whole number from 1 on", id_, key,
        factor, head_dim_, width);
  }
  return static_cast<int64_t>(width);
}

namespace {
thread_local OptionRecord* record = nullptr;
}  // namespace

OptionRecord::OptionRecord() : before_(record) { record = this; }
OptionRecord::~OptionRecord() { record = before_; }

void LayerOptions::close() const {
  if (record != nullptr) {
    for (const auto& [key, option] : asked_) record->options.push_back(option);
  }
  if (!options_.is_object()) return;
  for (const auto& [key, value] : options_.items()) {
    if (asked_.count(key)) continue;
    std::string known;
    for (const auto& [name, option] : asked_) known += (known.empty() ? "" : ", ") + name;
    throw UsageError("mixer {}: unknown option {}, expected: {}", id_, key, known);
  }
}

std::vector<LayerOption> layer_options(const Mechanism& m) {
  if (!m.layer) return {};
  const ShapesOnly shapes_only;
  LayerConfig config;
  config.hidden = kShownHidden, config.heads = kShownHeads;
  config.head_dim = kShownHidden / kShownHeads;
  const std::string& needed = m.card.tests.layer.options;
  if (!needed.empty()) config.options = Json::parse(needed);
  const OptionRecord record;
  m.layer(config);
  return record.options;
}

}  // namespace heed::mixer
