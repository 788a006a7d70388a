// `heed bench kernels`: the engines against PyTorch, with the machine's limits measured in the same
// run.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "bench/cases.h"
#include "bench/record.h"
#include "io/progress.h"

namespace heed::bench {

struct KernelOptions {
  at::Device device = at::kCPU;
  std::string filter;                            // regular expression, searched in names
  std::vector<std::string> peers = {"pytorch"};  // see kernel_peers(); empty: none
  bool quick = false;
};

// The cases whose name has a match of `filter` (ECMAScript; empty: all) and that run on `device`.
// UsageError for a broken expression and where nothing matches.
std::vector<Case> choose_cases(const KernelOptions& options);

// Times one case and checks the very output that was timed. Throws Error naming the case, the
// output, its error and the bound where ours is wrong.
Record run_case(const Case& c, const KernelOptions& options);

// Checks the names of peers: "pytorch", and those that cannot be called from a C++ program, which
// are listed with the reason. UsageError for others.
void check_peers(const std::vector<std::string>& peers);

Json run_kernels(const KernelOptions& options, Progress& progress = no_progress());

}  // namespace heed::bench
