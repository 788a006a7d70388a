// Progress of long work that is made of many stages: says which step of how many is running and how
// long all of it will take, from the time that the steps so far took.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "io/progress.h"

namespace heed::lab {

class Steps : public Progress {
 public:
  struct Step {
    std::string name;
    double cost;  // relative to the other steps
  };
  Steps(Progress& shown, std::vector<Step> steps);

  void next();  // the first call starts the first step
  // There is nothing to do in the step that runs: says why, and counts it no more in the time left.
  void skip(std::string_view why);

  void begin(std::string_view stage, int64_t total) override;
  void update(int64_t done, std::string_view note) override;
  void end() override;

 private:
  // "about 6 min left", or empty before anything is known.
  std::string left() const;

  Progress& shown_;
  std::vector<Step> steps_;
  size_t at_ = 0;  // 1 + the step that runs; 0: none yet
  double finished_ = 0, all_ = 0;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace heed::lab
