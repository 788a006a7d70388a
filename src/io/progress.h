// Progress and interruption, as the rooms below the command line see them. Long work calls
// `progress.step()`; the command line draws the bar (on a terminal only, on stderr).
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>

#include "io/error.h"

namespace heed {

// Set by the SIGINT handler of the program; long loops look at it between units of work.
inline std::atomic<bool> g_interrupted{false};

inline void check_interrupted() {
  if (g_interrupted.load(std::memory_order_relaxed)) throw Interrupted();
}

// Told what is being done and how far it is. The default says nothing.
class Progress {
 public:
  virtual ~Progress() = default;
  // Starts a stage of `total` units (0: unknown).
  virtual void begin(std::string_view stage, int64_t total) {}
  // `done` units of the stage are finished; `note` is a short figure to show beside the bar.
  virtual void update(int64_t done, std::string_view note = {}) {}
  virtual void end() {}

  // update() and a look at Ctrl-C, for loops.
  void step(int64_t done, std::string_view note = {}) {
    check_interrupted();
    update(done, note);
  }
};

inline Progress& no_progress() {
  static Progress silent;
  return silent;
}

}  // namespace heed
