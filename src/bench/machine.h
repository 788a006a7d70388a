// What the machine is and what it can do, measured now: the limits that a benchmark's figures are
// fractions of.
#pragma once

#include <ATen/core/Tensor.h>

#include "bench/record.h"
#include "io/progress.h"

namespace heed::bench {

// Names, versions, copy and read bandwidth over arrays far larger than the caches, and the rate of
// square matrix products by dtype, all through PyTorch with its present number of threads. `quick`:
// smaller arrays, fewer repeats.
Machine measure_machine(const at::Device& device, bool quick, Progress& progress = no_progress());

// Measures bandwidths and rates again and keeps the better of both: other programs slow a machine
// down, nothing speeds it up.
void measure_again(Machine& machine, const at::Device& device, bool quick,
                   Progress& progress = no_progress());

// "AMD EPYC" -> "AMD-EPYC": the folder of this machine's results.
std::string folder_name(const std::string& device);

}  // namespace heed::bench
