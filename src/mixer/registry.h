// Every system of the field by id. A mechanism is one file of this folder: NAME.cc defines
// `void register_NAME(Registry&)`, the build lists it. Shared code is in common/.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mixer/card.h"
#include "mixer/layer.h"

namespace heed::mixer {

// The settings of one call of a core, checked against its row; what was not given has no value.
class Settings {
 public:
  void set(const SettingSpec& spec, const std::string& text);  // UsageError if it is no such value
  bool has(const std::string& name) const { return values_.count(name) > 0; }
  bool flag(const std::string& name, bool fallback) const;
  int64_t integer(const std::string& name, int64_t fallback) const;
  double number(const std::string& name, double fallback) const;
  std::optional<double> number(const std::string& name) const;

 private:
  std::map<std::string, double> values_;
};

struct CoreCall {
  NamedTensors in;  // checked against the row; optional ones may be missing
  Settings settings;
  std::string form;

  at::Tensor get(const std::string& name) const;  // undefined if missing
};

struct Mechanism {
  Card card;
  Traits traits;
  // The forms that go with given settings, the default first; empty: those of the row.
  std::function<std::vector<std::string>(const Settings&)> forms;
  // Outputs by name. Differentiable unless the form is recurrent.
  std::function<NamedTensors(const CoreCall&)> core;
  std::function<std::unique_ptr<Layer>(const LayerConfig&)> layer;  // may be empty
};

class Registry {
 public:
  void add(Mechanism mechanism);
  const std::vector<Mechanism>& all() const { return mechanisms_; }  // ready ones, by id
  const Mechanism* find(const std::string& id) const;

 private:
  std::vector<Mechanism> mechanisms_;
};

// All mechanisms of this build, made once.
const Registry& registry();

// The cards of all systems, ready and planned, by family and id.
const std::vector<Card>& cards();
// Throws UsageError naming the nearest id.
const Card& find_card(const std::string& id);
// Throws UsageError: unknown id, or planned.
const Mechanism& find_mechanism(const std::string& id);

}  // namespace heed::mixer
