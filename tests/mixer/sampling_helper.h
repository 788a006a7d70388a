// Calls of any mechanism, made from its card alone (mixer/sample.h), run, cut and compared.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "mixer/apply.h"
#include "mixer/common/shape.h"
#include "mixer/sample.h"

namespace heed::mixer::testing {

using mixer::fixes_tokens;
using mixer::make_inputs;
using mixer::names_of;
using mixer::SampleOptions;
using mixer::SettingList;
using mixer::Sizes;
using mixer::sizes_of;
using mixer::tries;

// `lengths`, or the only one that the try has.
std::vector<int64_t> lengths_of(const Mechanism& mechanism, const Try& one,
                                const std::vector<int64_t>& lengths);

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
