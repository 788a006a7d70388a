// Timing of several implementations of one thing, alternately in one process, on inputs that do not
// sit in the processor's caches.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "io/progress.h"

namespace heed::bench {

// One implementation. Inputs exist several times over ("sets"), so that a run finds none of its own
// in a cache; `set` says which to use.
struct Contender {
  std::string name;  // empty: ours
  std::string version;
  std::string reason;                        // not empty: it cannot be had, and why
  std::function<void(int64_t set)> prepare;  // before each run and not timed; may be empty
  std::function<std::vector<at::Tensor>(int64_t set)> run;
};

struct TimingOptions {
  int least_runs = 5;
  int most_runs = 31;
  double seconds = 1.5;  // a contender; enough runs for it between the two above
  double batch_ms = 5;   // short calls are timed together until they take this long
};

struct Times {
  double median = 0, least = 0, most = 0;  // ms a call
  int runs = 0;
  int64_t set = 0;                  // the set of the last run
  std::vector<at::Tensor> outputs;  // of the last run
};

// Times of all contenders, in their order; those with a reason stay empty. Each round runs every
// contender, in turn from either end. Looks at Ctrl-C between runs.
std::vector<Times> time_alternately(const std::vector<const Contender*>& contenders, int64_t sets,
                                    const at::Device& device, const TimingOptions& options);

// Waits until the device has done all that it was asked for.
void wait_for(const at::Device& device);

double median_of(std::vector<double> values);

}  // namespace heed::bench
