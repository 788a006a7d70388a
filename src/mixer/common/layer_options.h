// The options object of a layer, checked.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "mixer/layer.h"

namespace heed::mixer {

// Typed access with defaults; close() throws UsageError for keys that were not asked for.
class LayerOptions {
 public:
  LayerOptions(const std::string& id, const LayerConfig& config);
  bool has(const std::string& key) { return find(key) != nullptr; }
  int64_t integer(const std::string& key, int64_t fallback, int64_t least = 1);
  double number(const std::string& key, double fallback);
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

 private:
  const Json* find(const std::string& key);
  std::string id_;
  Json options_;
  std::set<std::string> asked_;
  int64_t hidden_, heads_, head_dim_;
};

}  // namespace heed::mixer
