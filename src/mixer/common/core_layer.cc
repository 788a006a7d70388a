// See core_layer.h.
#include "mixer/common/core_layer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "io/error.h"

namespace heed::mixer {

using at::Tensor;

CoreLayer::CoreLayer(const std::string& id, const LayerConfig& config, unsigned own,
                     const std::vector<std::string>& settings)
    : AttentionLayer(id, config, own) {
  const Card& card = find_card(id);
  SettingList given;
  for (const std::string& name : settings) {
    const std::string text = options_.text(name);
    if (const SettingSpec* spec = card.apply.setting(name)) {
      options_.describe(name, expected(*spec), spec->required ? "" : spec->default_value);
    }
    if (!text.empty()) given.emplace_back(name, text);
  }
  // The grid is the call's; the card may ask for it.
  if (const SettingSpec* grid = card.apply.setting("grid"); grid && grid->required) {
    given.emplace_back("grid", "1x1");
  }
  settings_ = read_settings(card, given);
}

Tensor CoreLayer::mix(Heads& h, op::AttendOptions options) {
  const Mechanism& mechanism = find_mechanism(id());
  CoreCall call;
  call.form = "parallel";
  call.settings = settings_;
  const Grid& grid = h.call.grid;
  if (const SettingSpec* spec = mechanism.card.apply.setting("grid")) {
    std::string text;
    for (int a = 0; a < grid.rank; ++a) text += fmt::format("{}{}", a ? "x" : "", grid.size[a]);
    if (grid.rank == 0 && spec->required) {
      throw UsageError("mixer {}: the tokens must be those of a grid", id());
    }
    if (grid.rank > 0) call.settings.set(*spec, text);
  }
  return by_sequence(h, [&](const Sequences& part) {
    call.in = {{"q", part(h.q)}, {"k", part(h.k)}, {"v", part(h.v)}};
    more_inputs(h, part, call);
    return mechanism.core(call).at("out");
  });
}

std::pair<Tensor, Tensor> CoreLayer::held(const Rows& rows, at::ScalarType dtype) {
  const RowsPart& part = rows.part();
  if (rows.length() == 0) {
    const auto none = at::TensorOptions().dtype(dtype);
    return {at::empty({1, 0, rows.heads(), part.k_dim}, none),
            at::empty({1, 0, rows.heads(), part.v_dim}, none)};
  }
  const Rows::Run all = rows.held(rows.groups()[0]);
  const auto view = [&](const Tensor& t) { return t.transpose(0, 1).unsqueeze(0).to(dtype); };
  return {view(all.k), view(all.v)};
}

Tensor CoreLayer::over_states(
    Heads& h,
    const std::function<Tensor(const Sequences&, State&, const Tensor& k, const Tensor& v)>& f) {
  size_t s = 0;
  return by_sequence(h, [&](const Sequences& part) {
    while (h.layout.bounds[s + 1] <= part.first) ++s;
    State& state = *h.call.states[s];
    const auto rows = [&](const Tensor& t) { return t.narrow(0, part.first, part.length); };
    state.rows().append(rows(h.k), rows(h.v));
    const auto [k, v] = held(state.rows(), h.q.scalar_type());
    return f(part, state, k, v);
  });
}

}  // namespace heed::mixer
