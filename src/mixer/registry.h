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
#include "mixer/settings.h"

namespace heed::mixer {

// One call of a core. The sizes of the row's dimensions are known and the tensors fit them.
struct CoreCall {
  NamedTensors in;  // checked against the row; optional ones may be missing
  Settings settings;
  std::string form;
  std::map<std::string, double> names;  // sizes by dimension name, and settings

  at::Tensor get(const std::string& name) const;     // undefined if missing
  int64_t size(const std::string& dimension) const;  // Error if no tensor has it
};

struct Mechanism {
  Card card;
  Traits traits;
  // Outputs by name. Differentiable unless the form is recurrent.
  std::function<NamedTensors(const CoreCall&)> core;
  std::function<std::unique_ptr<Layer>(const LayerConfig&)> layer;  // may be empty
  // Causality of a call with these settings; empty: see causality().
  std::function<Causality(const Settings&)> causality;
  // Makes sampled inputs fit each other where the row alone cannot say how (a sorted list of
  // indices, a state that belongs together). For the property suites; may be empty.
  std::function<void(NamedTensors&, const Settings&)> fit_inputs;
};

// The settings of the row with their defaults, and those given as text. UsageError for an unknown
// or missing one, or a wrong value.
Settings read_settings(const Card& card, const SettingList& given);

// Whether a condition of a row (see TensorSpec) holds.
bool holds(const std::string& when, const Settings& settings, const NamedTensors& given);

// The forms that go with the settings, the default first.
std::vector<std::string> forms_of(const Card& card, const Settings& settings,
                                  const NamedTensors& given);

// The mechanism's own word; else none if a true/false setting `causal` is off or the card has no
// causal pattern, and its traits' causality otherwise.
Causality causality(const Mechanism& mechanism, const Settings& settings);

class Registry {
 public:
  // Fills in what systems.tsv says (title, family, kind, paper) and the shortest try line. Throws
  // Error for an id that is there already or that systems.tsv does not have.
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
