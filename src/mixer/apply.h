// `heed apply`: the core of one mixer on given tensors.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "mixer/registry.h"

namespace heed::mixer {

struct ApplyOptions {
  std::string form;  // empty: the mechanism's first
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;  // of token tensors; float64 only with the form naive
  SettingList settings;
  bool grad = false;  // also takes grad_OUT tensors and returns grad_IN
};

// Checks names, types, shapes, settings, form and pattern (UsageError names what was expected),
// converts, runs, and returns outputs on the CPU: float32 (float64 for dtype float64), int64.
NamedTensors apply(const Mechanism& mechanism, const NamedTensors& inputs,
                   const ApplyOptions& options);

// The row as text: inputs, settings, outputs, forms.
std::string describe(const ApplyRow& row);

// "float", "int64" or "bool".
const char* dtype_name(Dtype dtype);

}  // namespace heed::mixer
