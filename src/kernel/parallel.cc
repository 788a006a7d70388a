// The pool of std::threads of parallel.h: workers spin for a moment before they sleep, because a
// decoding step makes hundreds of short runs one after another.
#include "kernel/parallel.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "heed/parallel.h"

namespace heed::kernel {

struct ThreadPool::State {
  std::mutex caller;  // held during a run
  std::mutex mutex;   // guards round, stop and the condition variable
  std::condition_variable start;
  std::atomic<uint64_t> round{0};
  std::atomic<bool> stop{false};
  std::atomic<int32_t> busy{0};
  std::atomic<int64_t> next{0};
  int64_t n = 0;
  heed_task task = nullptr;
  void* context = nullptr;
  std::vector<std::thread> workers;

  void take_tasks(int32_t worker) {
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) task(i, worker, context);
  }

  void work(int32_t worker) {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < 2000 && round.load() == seen && !stop.load(); ++spin) {
        if (spin % 64 == 63) std::this_thread::yield();
      }
      {
        std::unique_lock<std::mutex> lock(mutex);
        start.wait(lock, [&] { return round.load() != seen || stop.load(); });
        if (stop.load()) return;
        seen = round.load();
      }
      take_tasks(worker);
      busy.fetch_sub(1);
    }
  }
};

ThreadPool::ThreadPool(int32_t threads) : state_(std::make_unique<State>()) {
  parallel_.threads = threads > 1 ? threads : 1;
  parallel_.data = state_.get();
  parallel_.run = [](const heed_parallel* self, int64_t n, heed_task task, void* context) {
    State& state = *static_cast<State*>(self->data);
    std::lock_guard<std::mutex> one_at_a_time(state.caller);
    {
      std::lock_guard<std::mutex> lock(state.mutex);
      state.n = n;
      state.task = task;
      state.context = context;
      state.next.store(0);
      state.busy.store(static_cast<int32_t>(state.workers.size()));
      state.round.fetch_add(1);
    }
    state.start.notify_all();
    state.take_tasks(0);
    while (state.busy.load() > 0) std::this_thread::yield();
  };
  for (int32_t worker = 1; worker < parallel_.threads; ++worker) {
    state_->workers.emplace_back([this, worker] { state_->work(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop.store(true);
  }
  state_->start.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

}  // namespace heed::kernel

namespace {

// The pool behind the C interface: `parallel` comes first, so that its address leads back here.
struct OwnedPool {
  heed_parallel parallel;
  heed::kernel::ThreadPool pool;

  explicit OwnedPool(int32_t threads) : pool(threads) { parallel = *pool.parallel(); }
};

}  // namespace

extern "C" {

heed_parallel* heed_thread_pool_create(int32_t threads) {
  try {
    return &(new OwnedPool(threads))->parallel;
  } catch (const std::bad_alloc&) {
    return nullptr;
  } catch (const std::system_error&) {
    return nullptr;
  }
}

void heed_thread_pool_destroy(heed_parallel* pool) { delete reinterpret_cast<OwnedPool*>(pool); }

}  // extern "C"
