// Inputs for any mixer, made from its row alone.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <vector>

#include "mixer/apply.h"

namespace heed::mixer::testing {

using Sizes = std::map<std::string, int64_t>;
using SettingList = std::vector<std::pair<std::string, std::string>>;

// Sizes for recurrences (T tokens) and for attention (T queries and keys), small and odd.
Sizes small_sizes(int64_t tokens);

struct SampleOptions {
  bool optional = true;  // optional tensors too (offsets never)
  bool extreme = false;  // gates of exactly 0 and 1, decays of 0, -8 and -inf
  at::ScalarType dtype = at::kFloat;
};

// Float32 inputs of the row that go with the settings; deterministic in `seed`.
NamedTensors make_inputs(const Mechanism& mechanism, const Sizes& sizes,
                         const SettingList& settings, uint64_t seed,
                         const SampleOptions& options = {});

// Settings worth trying: the defaults, every true/false setting turned, windows and caps where
// there are any.
std::vector<SettingList> variants(const Mechanism& mechanism);
// `settings` with causal=true where the mixer has that setting.
SettingList causal(const Mechanism& mechanism, SettingList settings = {});
// Whether the setting is on, with its default.
bool is_on(const Mechanism& mechanism, const SettingList& settings, const std::string& name);
// The forms that go with the settings.
std::vector<std::string> forms_of(const Mechanism& mechanism, const SettingList& settings);

NamedTensors run(const Mechanism& mechanism, const NamedTensors& inputs, const std::string& form,
                 const SettingList& settings, at::ScalarType dtype = at::kFloat, bool grad = false);

// Position of a named dimension in a shape of the row, or -1.
int64_t dim_of(const std::string& shape, const std::string& name);

// ||y - ref|| / ||ref|| over the finite entries; infinite if infinities or sizes differ.
double relative_error(const at::Tensor& y, const at::Tensor& reference);

std::string describe(const SettingList& settings);

}  // namespace heed::mixer::testing
