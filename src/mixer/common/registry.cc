// The registry, settings, and the cards of all systems.
#include "mixer/registry.h"

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

bool ApplyRow::has_form(const std::string& form) const {
  return std::find(forms.begin(), forms.end(), form) != forms.end();
}

void Settings::set(const SettingSpec& spec, const std::string& text) {
  const auto wrong = [&](const char* expected) {
    throw UsageError("setting {}={}: expected {}", spec.name, text, expected);
  };
  if (spec.type == SettingType::kBool) {
    if (text != "true" && text != "false" && text != "1" && text != "0") wrong("true or false");
    values_[spec.name] = text == "true" || text == "1";
    return;
  }
  const bool whole = spec.type == SettingType::kInt;
  const char* expected = whole ? "a whole number" : "a number";
  double value = 0;
  size_t end = 0;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
    wrong(expected);
  }
  if (end != text.size() || !std::isfinite(value)) wrong(expected);
  if (whole && (value != std::floor(value) || std::abs(value) > 1e15)) wrong(expected);
  values_[spec.name] = value;
}

bool Settings::flag(const std::string& name, bool fallback) const {
  return number(name, fallback ? 1.0 : 0.0) != 0.0;
}

int64_t Settings::integer(const std::string& name, int64_t fallback) const {
  const auto it = values_.find(name);
  return it == values_.end() ? fallback : static_cast<int64_t>(it->second);
}

double Settings::number(const std::string& name, double fallback) const {
  return number(name).value_or(fallback);
}

std::optional<double> Settings::number(const std::string& name) const {
  const auto it = values_.find(name);
  return it == values_.end() ? std::nullopt : std::optional<double>(it->second);
}

at::Tensor CoreCall::get(const std::string& name) const {
  const auto it = in.find(name);
  return it == in.end() ? at::Tensor() : it->second;
}

int64_t Call::sequences(const at::Tensor& x) const {
  const int64_t n = cu_seqlens.defined() ? cu_seqlens.size(0) - 1 : x.size(0);
  if (!states.empty() && static_cast<int64_t>(states.size()) != n) {
    throw UsageError("a call of {} sequences was given {} states", n, states.size());
  }
  return n;
}

void Registry::add(Mechanism mechanism) {
  mechanism.card.ready = true;
  mechanism.card.has_layer = static_cast<bool>(mechanism.layer);
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

thread_local bool ShapesOnly::on_ = false;

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
