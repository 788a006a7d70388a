// The cases of `heed bench kernels`: what is timed, over which shapes, and how its output is
// checked.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "bench/record.h"
#include "bench/timing.h"

namespace heed::bench {

// One output of a timed call against its reference.
struct Checked {
  std::string what;  // "out", "grad_k"
  double error = 0;  // ||y - ref|| / ||ref||
  double bound = 0;  // that ours may not pass
};

// A case with its inputs in memory.
struct Work {
  int64_t sets = 1;  // of inputs, each of them `set_bytes` long
  Contender ours;
  std::vector<Contender> peers;
  // Compares what `run(set)` returned, on a slice where the whole would take too long.
  std::function<std::vector<Checked>(int64_t set, const std::vector<at::Tensor>& outputs)> check;
};

struct Case {
  std::string name, op, pass, dtype;
  std::string arithmetic;  // see Record
  Json shape;
  int64_t bytes = 0, flops = 0;
  bool cuda = true;  // has a form there
  std::function<Work(const at::Device& device)> make;
};

// Quick: a few small shapes of each kind.
std::vector<Case> attend_cases(bool quick);
std::vector<Case> scan_cases(bool quick);
std::vector<Case> ewscan_cases(bool quick);
std::vector<Case> attend_variant_cases(bool quick);
std::vector<Case> pool_cases(bool quick);
std::vector<Case> learn_cases(bool quick);
std::vector<Case> mix_cases(bool quick);

// As many sets as pass the caches of today's processors (96 MB together), at least 2, at most 64.
int64_t sets_of(int64_t bytes);

// Relative error over all elements, in float64; NaN where the shapes differ.
double relative_error(const at::Tensor& value, const at::Tensor& reference);

// The bounds of one engine in float32 (forward 2e-6, gradients 1e-5) and 16-bit storage.
double forward_bound(const std::string& dtype);
double backward_bound(const std::string& dtype);

// The name under which a shape is listed: {"T", 512}, {"D", 64} -> "T512-D64".
std::string shape_name(const std::vector<std::pair<std::string, int64_t>>& sizes);

}  // namespace heed::bench
