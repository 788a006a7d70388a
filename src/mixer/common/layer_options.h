// The options object of a layer, checked.
#pragma once

#include <limits>
#include <map>
#include <string>
#include <vector>

#include "mixer/layer.h"

namespace heed::mixer {

struct Mechanism;

// What a layer asked for: what users may set. `fallback` as it is written in JSON, or words.
struct LayerOption {
  std::string name, expected, fallback;
};

// The options that layers made on this thread ask for while it lives.
class OptionRecord {
 public:
  OptionRecord();
  ~OptionRecord();
  OptionRecord(const OptionRecord&) = delete;
  OptionRecord& operator=(const OptionRecord&) = delete;
  std::vector<LayerOption> options;

 private:
  OptionRecord* before_;
};

// Typed access with defaults; close() throws UsageError for keys that were not asked for.
class LayerOptions {
 public:
  LayerOptions(const std::string& id, const LayerConfig& config);
  bool has(const std::string& key) const;
  int64_t integer(const std::string& key, int64_t fallback, int64_t least = 1);
  // At least `least`, or any.
  double number(const std::string& key, double fallback, double least = -kAny);
  double positive(const std::string& key, double fallback);  // above 0
  bool flag(const std::string& key, bool fallback);
  // One of `words`, the first where the option is missing.
  std::string word(const std::string& key, const std::vector<std::string>& words);
  // As a setting of `heed apply` is written: "7", "3x4", "true", "relu"; empty: missing.
  std::string text(const std::string& key);
  // A width: `factor` (by key, with its default) times heads times head_dim, over the heads; must
  // be whole.
  int64_t head_width(const std::string& key, double fallback);
  int64_t heads() const { return heads_; }
  int64_t head_dim() const { return head_dim_; }
  int64_t hidden() const { return hidden_; }
  void close() const;
  // What the record says of an option that has no fixed default.
  void describe(const std::string& key, const std::string& expected, const std::string& fallback);

 private:
  static constexpr double kAny = std::numeric_limits<double>::infinity();

  const Json* find(const std::string& key, const std::string& expected,
                   const std::string& fallback);
  std::string id_;
  Json options_;
  std::map<std::string, LayerOption> asked_;
  int64_t hidden_, heads_, head_dim_;
};

// What the layer of a mechanism takes, sorted, with the defaults in a model of kShownHidden numbers
// a token and kShownHeads heads; empty: no layer. Those without a fallback must be given.
constexpr int64_t kShownHidden = 512, kShownHeads = 8;
std::vector<LayerOption> layer_options(const Mechanism& m);

}  // namespace heed::mixer
