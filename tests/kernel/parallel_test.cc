// The pool of threads: every task once, workers within bounds, many short runs, nothing lost.
#include "kernel/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "heed/parallel.h"

namespace heed::kernel {
namespace {

void check(const heed_parallel* parallel, int64_t n) {
  std::vector<std::atomic<int>> seen(n);
  std::atomic<bool> inside{true};
  parallel_for(parallel, n, [&](int64_t i, int32_t worker) {
    seen[i].fetch_add(1);
    if (worker < 0 || worker >= parallel_threads(parallel)) inside = false;
  });
  for (const auto& count : seen) ASSERT_EQ(count.load(), 1);
  EXPECT_TRUE(inside);
}

TEST(Parallel, RunsEveryTaskOnce) {
  check(nullptr, 10);
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t n : {0, 1, 2, 3, 100}) check(pool.parallel(), n);
    for (int i = 0; i < 300; ++i) check(pool.parallel(), 1 + i % 7);
  }
}

TEST(Parallel, CallersTakeTurns) {
  heed_parallel* pool = heed_thread_pool_create(3);
  ASSERT_NE(pool, nullptr);
  ThreadPool callers(4);
  parallel_for(callers.parallel(), 40, [&](int64_t i, int32_t) { check(pool, i); });
  heed_thread_pool_destroy(pool);
  heed_thread_pool_destroy(nullptr);
}

}  // namespace
}  // namespace heed::kernel
