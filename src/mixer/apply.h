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
  std::vector<std::pair<std::string, std::string>> settings;
  bool grad = false;  // also takes grad_OUT tensors and returns grad_IN
};

// Checks names, shapes, settings and form (UsageError names what was expected), converts, runs, and
// returns outputs in float32 (float64 for dtype float64) on the CPU.
NamedTensors apply(const Mechanism& mechanism, const NamedTensors& inputs,
                   const ApplyOptions& options);

// The row as text: inputs, settings, outputs, forms.
std::string describe(const ApplyRow& row);

}  // namespace heed::mixer
