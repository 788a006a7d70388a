#include "lab/steps.h"

#include <fmt/format.h>

#include <cmath>

namespace heed::lab {

using Clock = std::chrono::steady_clock;

Steps::Steps(Progress& shown, std::vector<Step> steps)
    : shown_(shown), steps_(std::move(steps)), start_(Clock::now()), last_(start_) {
  for (const auto& step : steps_) all_ += step.cost;
}

void Steps::next() {
  if (at_ > 0 && at_ <= steps_.size()) finished_ += steps_[at_ - 1].cost;
  if (at_ <= steps_.size()) ++at_;
  last_ = Clock::now();
}

void Steps::skip(std::string_view why) {
  if (at_ > 0 && at_ <= steps_.size()) {
    all_ -= steps_[at_ - 1].cost;
    steps_[at_ - 1].cost = 0;
  }
  begin(why, 1);
  update(1, {});
  end();
}

std::string Steps::left() const {
  if (finished_ <= 0) return {};
  // By what the finished steps took, less what the present one has already had.
  const auto seconds = [](auto d) { return std::chrono::duration<double>(d).count(); };
  const double took = seconds(last_ - start_);
  const double rest = took * (all_ / finished_ - 1) - seconds(Clock::now() - last_);
  if (rest < 1) return {};
  if (rest < 90) return fmt::format("about {:.0f} s in all left", std::ceil(rest / 10) * 10);
  return fmt::format("about {:.0f} min in all left", std::ceil(rest / 60));
}

void Steps::begin(std::string_view stage, int64_t total) {
  if (at_ == 0 || at_ > steps_.size()) {
    shown_.begin(stage, total);
    return;
  }
  shown_.begin(fmt::format("{}/{} {}: {}", at_, steps_.size(), steps_[at_ - 1].name, stage), total);
}

void Steps::update(int64_t done, std::string_view note) {
  const std::string all = left();
  shown_.update(done, note.empty()  ? all
                      : all.empty() ? std::string(note)
                                    : fmt::format("{}, {}", note, all));
}

void Steps::end() { shown_.end(); }

}  // namespace heed::lab
