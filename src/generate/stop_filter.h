// Text that stops before one of several strings.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

namespace heed {

// Passes text on as soon as it cannot belong to a stop string any more. `stop` and `out` must live
// as long as the filter.
class StopFilter {
 public:
  StopFilter(const std::vector<std::string>& stop,
             const std::function<void(const std::string&)>& out)
      : stop_(stop), out_(out) {}

  // True when a stop string has come up: the text before it has been passed on.
  bool push(const std::string& text) {
    held_ += text;
    size_t at = std::string::npos;
    for (const std::string& stop : stop_) {
      if (!stop.empty()) at = std::min(at, held_.find(stop));
    }
    if (at != std::string::npos) {
      held_.resize(at);
      flush();
      return true;
    }
    size_t keep = 0;  // the longest end that begins a stop string
    for (const std::string& stop : stop_) {
      for (size_t n = std::min(stop.size(), held_.size() + 1); n-- > keep + 1;) {
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
      }
    }
    emit(held_.substr(0, held_.size() - keep));
    held_.erase(0, held_.size() - keep);
    return false;
  }
  void flush() {
    emit(held_);
    held_.clear();
  }
  const std::string& text() const { return text_; }

 private:
  void emit(const std::string& text) {
    if (text.empty()) return;
    text_ += text;
    if (out_) out_(text);
  }
  const std::vector<std::string>& stop_;
  const std::function<void(const std::string&)>& out_;
  std::string held_, text_;
};

}  // namespace heed
