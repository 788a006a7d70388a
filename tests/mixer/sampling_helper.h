// Inputs for any mixer, made from its card alone.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "mixer/apply.h"
#include "mixer/common/shape.h"

namespace heed::mixer::testing {

using mixer::SettingList;
using mixer::Sizes;

// Calls worth testing: the card's defaults, every other value of its true/false settings and words,
// the values its settings name, and the tries of its test card; each with the settings that the
// card always gives.
std::vector<Try> tries(const Mechanism& mechanism);

// The sizes of one try: those of the test card, `tokens` queries and keys unless the try fixes
// them.
Sizes sizes_of(const Mechanism& mechanism, const Try& one, int64_t tokens);
bool fixes_tokens(const Mechanism& mechanism, const Try& one);
// `lengths`, or the only one that the try has.
std::vector<int64_t> lengths_of(const Mechanism& mechanism, const Try& one,
                                const std::vector<int64_t>& lengths);

// Every name that the row's shapes use, with the default for those that `sizes` leaves out.
Names names_of(const Mechanism& mechanism, const Sizes& sizes, const SettingList& settings);

struct SampleOptions {
  bool optional = true;  // optional tensors too (offsets never)
  bool extreme = false;  // gates of exactly 0 and 1, decays of 0, -8 and -inf
  at::ScalarType dtype = at::kFloat;
  size_t alternative = 0;  // of shapes that have several, modulo their number
  std::vector<std::string> without;
};

// Inputs of the row that go with the settings; deterministic in `seed`.
NamedTensors make_inputs(const Mechanism& mechanism, const Sizes& sizes,
                         const SettingList& settings, uint64_t seed,
                         const SampleOptions& options = {});
// The same for a try.
NamedTensors make_inputs(const Mechanism& mechanism, const Try& one, int64_t tokens, uint64_t seed,
                         SampleOptions options = {});

std::vector<std::string> forms_of(const Mechanism& mechanism, const SettingList& settings,
                                  const NamedTensors& inputs = {});
Causality causality(const Mechanism& mechanism, const SettingList& settings);

NamedTensors run(const Mechanism& mechanism, const NamedTensors& inputs, const std::string& form,
                 const SettingList& settings, at::ScalarType dtype = at::kFloat, bool grad = false);

// Slices every tensor along the dimensions that grow from nothing with a name: "T", "n T", "Hk V".
struct Range {
  std::string axis;
  int64_t begin, end;
};
NamedTensors cut(const std::vector<TensorSpec>& specs, NamedTensors tensors, const Names& names,
                 const std::vector<Range>& ranges);
// `tensors` up to `at` along the axes, `others` from there on.
NamedTensors replace_tail(const std::vector<TensorSpec>& specs, const NamedTensors& tensors,
                          const NamedTensors& others, const Names& names,
                          const std::vector<std::string>& axes, int64_t at);
// The dimension of a tensor that grows with the name, or -1.
int64_t axis_of(const TensorSpec& spec, const at::Tensor& t, const Names& names,
                const std::string& axis);

// ||y - ref|| / ||ref|| over the finite entries; infinite if infinities, sizes or any whole number
// differ.
double relative_error(const at::Tensor& y, const at::Tensor& reference);

std::string describe(const SettingList& settings);

}  // namespace heed::mixer::testing
