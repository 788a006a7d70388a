// Threads for the kernels: runs a kernel's tasks on what the caller gave (PyTorch's pool, OpenMP,
// the pool below), or on the calling thread where nothing was given.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "heed/view.h"

namespace heed::kernel {

// Bytes between the scratch of one worker and of the next. A core's hardware prefetchers run ahead
// of what its worker reads, up to some pages: into lines that another worker keeps writing, if they
// lie there, and every line so taken costs that worker a trip to the other core. Without a gap the
// second of two workers took 1.1 times as long in `scan`, and 1.6 times on cores without a common
// last-level cache; 4 KB brought back a third, 16 KB most, 64 KB all of it.
constexpr int64_t kWorkerGap = 64 << 10;

inline int32_t parallel_threads(const heed_parallel* parallel) {
  return parallel && parallel->threads > 1 ? parallel->threads : 1;
}

inline void parallel_run(const heed_parallel* parallel, int64_t n, heed_task task, void* context) {
  if (n <= 0) return;
  if (parallel_threads(parallel) == 1 || n == 1) {
    for (int64_t i = 0; i < n; ++i) task(i, 0, context);
    return;
  }
  parallel->run(parallel, n, task, context);
}

// parallel_run over a callable f(i, worker).
template <class F>
void parallel_for(const heed_parallel* parallel, int64_t n, F&& f) {
  using Fn = std::remove_reference_t<F>;
  parallel_run(
      parallel, n,
      [](int64_t i, int32_t worker, void* context) { (*static_cast<Fn*>(context))(i, worker); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// A pool of std::threads: threads - 1 of them, and the caller works too. One run at a time; a
// second caller waits. A task must not start another run of the same pool. Used where there is no
// OpenMP (sanitizer builds) and by programs that embed the kernels.
class ThreadPool {
 public:
  explicit ThreadPool(int32_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  const heed_parallel* parallel() const { return &parallel_; }

 private:
  struct State;
  std::unique_ptr<State> state_;
  heed_parallel parallel_;
};

#ifdef _OPENMP
// OpenMP's threads, tasks taken one by one. Only in files compiled with OpenMP.
inline heed_parallel openmp_parallel(int32_t threads = omp_get_max_threads()) {
  heed_parallel parallel{};
  parallel.threads = threads;
  parallel.run = [](const heed_parallel* self, int64_t n, heed_task task, void* context) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(self->threads)
    for (int64_t i = 0; i < n; ++i) task(i, omp_get_thread_num(), context);
  };
  return parallel;
}
#endif

}  // namespace heed::kernel
