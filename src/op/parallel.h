// Gives kernels the threads of PyTorch's pool, so that the two never run threads against each
// other.
#pragma once

#include <string>

#include "heed/view.h"

namespace heed::op {

// Over at::parallel_for: `threads` is at::get_num_threads(), tasks are taken one by one as workers
// become free. Inside another parallel region everything runs on the caller.
heed_parallel torch_parallel();

// Throws Error (UsageError for HEED_INVALID_ARGUMENT) naming `what` unless status is HEED_OK.
void check_status(heed_status status, const char* what);

// PyTorch's exp and its like on float32 come from MKL, which finds out at its first call what the
// processor can do. Where two threads make that call together, one of them now and then gets the
// version of half the digits (errors of 1e-5; 3% of processes). This makes it from one thread, once
// a process; callers of ordinary tensor operations go through it first.
void warm_vector_math();

// Says once per process and per `what` on stderr that the naive form of `what` runs, and why.
void warn_naive(const std::string& what, const std::string& reason);

}  // namespace heed::op
