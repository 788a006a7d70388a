// Learning-rate schedules: linear warm-up, then a cosine (SGDR, arXiv 1608.03983, without restarts)
// or warm-up-stable-decay (MiniCPM, arXiv 2404.06395, with linear decay).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

namespace heed::train {

struct Schedule {
  double lr = 1e-3;
  double min_lr = 0.1;  // the last step's rate, as a fraction of lr
  int64_t warmup = 0, steps = 1;
  bool wsd = false;
  double decay = 0.2;  // wsd: share of the steps that decay

  // The rate of step n = 0 .. steps - 1.
  double at(int64_t n) const {
    if (n < warmup) return lr * static_cast<double>(n + 1) / static_cast<double>(warmup);
    const double begin =
        wsd ? std::max(static_cast<double>(warmup), static_cast<double>(steps) * (1 - decay))
            : static_cast<double>(warmup);
    const double span = std::max(1.0, static_cast<double>(steps) - begin);
    const double done = std::clamp((static_cast<double>(n) - begin) / span, 0.0, 1.0);
    const double left = wsd ? 1 - done : 0.5 * (1 + std::cos(done * 3.14159265358979323846));
    return lr * (min_lr + (1 - min_lr) * left);
  }
};

}  // namespace heed::train
