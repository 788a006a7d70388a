// The registry, settings, and the cards of all systems.
#include "mixer/registry.h"

#include <set>

#include "heed/mixer_registry.inc"
#include "io/error.h"
#include "mixer/common/systems.h"

namespace heed::mixer {

const TensorSpec* ApplyRow::input(const std::string& name) const {
  for (const TensorSpec& spec : inputs) {
    if (spec.name == name) return &spec;
  }
  return nullptr;
}

const SettingSpec* ApplyRow::setting(const std::string& name) const {
  for (const SettingSpec& spec : settings) {
    if (spec.name == name) return &spec;
  }
  return nullptr;
}

bool ApplyRow::has_form(const std::string& form) const {
  return std::any_of(forms.begin(), forms.end(),
                     [&](const FormSpec& spec) { return spec.name == form; });
}

bool Card::has_pattern(const std::string& pattern) const {
  return (", " + patterns + ",").find(", " + pattern + ",") != std::string::npos;
}

at::Tensor CoreCall::get(const std::string& name) const {
  const auto it = in.find(name);
  return it == in.end() ? at::Tensor() : it->second;
}

int64_t CoreCall::size(const std::string& dimension) const {
  const auto it = names.find(dimension);
  if (it == names.end()) throw Error("no tensor of the call has the dimension {}", dimension);
  return static_cast<int64_t>(it->second);
}

Settings read_settings(const Card& card, const SettingList& given) {
  Settings settings;
  std::string known;
  for (const SettingSpec& spec : card.apply.settings) {
    settings.set_default(spec);
    known += (known.empty() ? "" : ", ") + spec.name;
  }
  std::set<std::string> seen;
  for (const auto& [name, text] : given) {
    const SettingSpec* spec = card.apply.setting(name);
    if (!seen.insert(name).second) {
      throw UsageError("{}: setting {} is given twice", card.id, name);
    }
    if (spec == nullptr) {
      throw UsageError("{}: unknown setting {}, expected one of: {}", card.id, name,
                       known.empty() ? "none" : known);
    }
    settings.set(*spec, text);
  }
  for (const SettingSpec& spec : card.apply.settings) {
    if (spec.required && !settings.has(spec.name)) {
      throw UsageError("{}: setting {} is missing, expected {}", card.id, spec.name,
                       expected(spec));
    }
  }
  return settings;
}

bool holds(const std::string& when, const Settings& settings, const NamedTensors& given) {
  size_t begin = 0;
  while (begin < when.size()) {
    const size_t end = std::min(when.find(',', begin), when.size());
    std::string condition = when.substr(begin, end - begin);
    condition.erase(0, condition.find_first_not_of(' '));
    begin = end + 1;
    const size_t equals = condition.find('=');
    if (equals == std::string::npos) {
      if (!settings.has(condition) && given.count(condition) == 0) return false;
      continue;
    }
    std::string name = condition.substr(0, equals);
    const bool entry = name.size() > 3 && name.ends_with("[0]");
    if (entry) name.resize(name.size() - 3);
    if (!settings.has(name)) return false;
    const std::string value = entry ? std::to_string(settings.ints(name)[0]) : settings.text(name);
    const std::string allowed = "|" + condition.substr(equals + 1) + "|";
    if (allowed.find("|" + value + "|") == std::string::npos) return false;
  }
  return true;
}

std::vector<std::string> forms_of(const Card& card, const Settings& settings,
                                  const NamedTensors& given) {
  std::vector<std::string> forms;
  for (const FormSpec& form : card.apply.forms) {
    if (holds(form.when, settings, given)) forms.push_back(form.name);
  }
  return forms;
}

Causality causality(const Mechanism& mechanism, const Settings& settings) {
  if (mechanism.causality) return mechanism.causality(settings);
  const SettingSpec* spec = mechanism.card.apply.setting("causal");
  const bool off =
      spec != nullptr && spec->type == SettingType::kBool && !settings.flag("causal", false);
  const bool never =
      !mechanism.card.has_pattern("causal self") && !mechanism.card.has_pattern("causal cross");
  return off || never ? Causality::kNone : mechanism.traits.causality;
}

void Registry::add(Mechanism mechanism) {
  Card& card = mechanism.card;
  const System* system = find_system(card.id);
  if (system == nullptr) throw Error("mixer {} has no line in systems.tsv", card.id);
  card.title = system->title;
  card.family = system->family;
  card.kind = system->kind;
  card.paper = system->paper;
  card.ready = true;
  card.has_layer = static_cast<bool>(mechanism.layer);
  if (card.try_line.empty()) {
    card.try_line = "heed apply " + card.id + " --in IN.safetensors --out OUT.safetensors";
    for (const auto& [name, text] : card.tests.always) {
      const SettingSpec* spec = card.apply.setting(name);
      if (spec != nullptr && spec->required) card.try_line += " --set " + name + "=" + text;
    }
  }
  if (find(mechanism.card.id) != nullptr) {
    throw Error("mixer {} is registered twice", mechanism.card.id);
  }
  mechanisms_.push_back(std::move(mechanism));
  std::sort(mechanisms_.begin(), mechanisms_.end(),
            [](const Mechanism& a, const Mechanism& b) { return a.card.id < b.card.id; });
}

const Mechanism* Registry::find(const std::string& id) const {
  for (const Mechanism& mechanism : mechanisms_) {
    if (mechanism.card.id == id) return &mechanism;
  }
  return nullptr;
}

const Registry& registry() {
  static const Registry made = [] {
    Registry r;
    for (auto register_mechanism : k_mixer_registry) register_mechanism(r);
    return r;
  }();
  return made;
}

const std::vector<Card>& cards() {
  static const std::vector<Card> all = [] {
    std::vector<Card> made;
    for (const Mechanism& mechanism : registry().all()) made.push_back(mechanism.card);
    for (const System& system : systems()) {
      const Mechanism* ready = registry().find(system.id);
      if (ready != nullptr) continue;
      Card card;
      card.id = system.id;
      card.family = system.family;
      card.kind = system.kind;
      card.title = system.title;
      card.paper = system.paper;
      made.push_back(card);
    }
    std::sort(made.begin(), made.end(), [](const Card& a, const Card& b) {
      return std::tie(a.family, a.id) < std::tie(b.family, b.id);
    });
    return made;
  }();
  return all;
}

namespace {

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

const Card& find_card(const std::string& id) {
  const Card* nearest = nullptr;
  size_t least = 0;
  for (const Card& card : cards()) {
    if (card.id == id) return card;
    const size_t distance = edit_distance(id, card.id);
    if (nearest == nullptr || distance < least) nearest = &card, least = distance;
  }
  throw UsageError("there is no system {}; the nearest name is {}, `heed list` shows all", id,
                   nearest == nullptr ? "none" : nearest->id);
}

const Mechanism& find_mechanism(const std::string& id) {
  const Card& card = find_card(id);
  const Mechanism* mechanism = registry().find(id);
  if (mechanism == nullptr) {
    throw UsageError("{} ({}) is planned, not ready; `heed list --status ready` shows what is", id,
                     card.title);
  }
  return *mechanism;
}

std::unique_ptr<Layer> make_layer(const std::string& id, const LayerConfig& config) {
  const Mechanism& mechanism = find_mechanism(id);
  if (!mechanism.layer) {
    std::string with_layer;
    for (const Mechanism& m : registry().all()) {
      if (m.layer) with_layer += (with_layer.empty() ? "" : ", ") + m.card.id;
    }
    throw UsageError("mixer {} has a core but no layer of its own; layers: {}", id, with_layer);
  }
  return mechanism.layer(config);
}

}  // namespace heed::mixer
