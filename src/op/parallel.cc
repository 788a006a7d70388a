#include "op/parallel.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <atomic>
#include <cstdio>
#include <mutex>
#include <set>

#include "io/error.h"

namespace heed::op {
namespace {

void run_on_pool(const heed_parallel* self, int64_t n, heed_task task, void* context) {
  if (n <= 0) return;
  if (n == 1 || self->threads <= 1 || at::in_parallel_region()) {
    for (int64_t i = 0; i < n; ++i) task(i, 0, context);
    return;
  }
  // at::parallel_for would cut [0, n) into equal runs; causal tiles differ in cost, so each worker
  // takes the next task as it becomes free.
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(self->threads, n);
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < n;
           i = next.fetch_add(1, std::memory_order_relaxed)) {
        task(i, static_cast<int32_t>(worker), context);
      }
    }
  });
}

}  // namespace

heed_parallel torch_parallel() {
  return heed_parallel{run_on_pool, at::get_num_threads(), nullptr};
}

void check_status(heed_status status, const char* what) {
  switch (status) {
    case HEED_OK:
      return;
    case HEED_INVALID_ARGUMENT:
      throw UsageError("{}: a shape, dtype or option that the kernel does not take", what);
    case HEED_UNSUPPORTED:
      throw Error("{}: this build or processor has no kernel for it", what);
    case HEED_OUT_OF_MEMORY:
      throw Error("{}: out of memory; use a shorter sequence or fewer threads", what);
  }
  throw Error("{}: unknown status {}", what, static_cast<int>(status));
}

void warn_naive(const std::string& what, const std::string& reason) {
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard lock(mutex);
  if (!said.insert(what).second) return;
  std::fprintf(stderr, "heed: %s runs in its naive form: %s\n", what.c_str(), reason.c_str());
}

void warm_vector_math() {
  static const bool done = [] {
    const at::Tensor few = at::zeros({16});
    at::exp(few), at::log(few.add(1)), at::cos(few), at::sin(few), at::tanh(few);
    return true;
  }();
  (void)done;
}

}  // namespace heed::op
