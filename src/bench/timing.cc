#include "bench/timing.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace heed::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Runner {
 public:
  Runner(const Contender& contender, int64_t sets, const at::Device& device)
      : contender_(contender), sets_(sets), device_(device) {}

  // Two calls that are not counted; the second tells how many calls make one run.
  double warm_up(double batch_ms) {
    call(1);
    const double ms = call(1);
    if (!contender_.prepare) {
      calls_ = static_cast<int>(std::clamp(std::ceil(batch_ms / std::max(ms, 1e-4)), 1.0, 1000.0));
    }
    return ms * calls_ * 1e-3;
  }

  void run() {
    check_interrupted();
    times_.push_back(call(calls_));
  }

  Times result() {
    Times t;
    t.median = median_of(times_);
    t.least = *std::min_element(times_.begin(), times_.end());
    t.most = *std::max_element(times_.begin(), times_.end());
    t.runs = static_cast<int>(times_.size());
    t.set = set_;
    t.outputs = std::move(outputs_);
    return t;
  }

 private:
  double call(int count) {
    if (contender_.prepare) contender_.prepare((set_ + 1) % sets_);
    wait_for(device_);
    const auto start = Clock::now();
    for (int i = 0; i < count; ++i) {
      set_ = (set_ + 1) % sets_;
      outputs_ = contender_.run(set_);
    }
    wait_for(device_);
    return seconds_since(start) * 1e3 / count;
  }

  const Contender& contender_;
  const int64_t sets_;
  const at::Device device_;
  int calls_ = 1;
  int64_t set_ = -1;
  std::vector<double> times_;
  std::vector<at::Tensor> outputs_;
};

}  // namespace

void wait_for(const at::Device& device) {
  // A copy to the host waits for everything before it.
  if (device.is_cuda()) at::zeros({1}, at::TensorOptions().device(device)).item<float>();
}

double median_of(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

std::vector<Times> time_alternately(const std::vector<const Contender*>& contenders, int64_t sets,
                                    const at::Device& device, const TimingOptions& options) {
  std::vector<Runner> runners;
  std::vector<size_t> place;
  for (size_t i = 0; i < contenders.size(); ++i) {
    if (!contenders[i]->reason.empty()) continue;
    place.push_back(i);
    runners.emplace_back(*contenders[i], sets, device);
  }
  double round = 0;  // seconds that all of them take
  for (Runner& r : runners) {
    check_interrupted();
    round += r.warm_up(options.batch_ms);
  }
  const double wanted = options.seconds * static_cast<double>(runners.size()) / round;
  const int rounds = static_cast<int>(
      std::clamp<double>(wanted, options.least_runs, std::max(options.most_runs, 1)));
  for (int n = 0; n < rounds; ++n) {
    for (size_t i = 0; i < runners.size(); ++i) {
      runners[n % 2 == 0 ? i : runners.size() - 1 - i].run();
    }
  }
  std::vector<Times> times(contenders.size());
  for (size_t i = 0; i < runners.size(); ++i) times[place[i]] = runners[i].result();
  return times;
}

}  // namespace heed::bench
