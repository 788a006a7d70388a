// Steps of several sequences: products of a few rows each.
#pragma once

namespace heed {

// While one lives, products (weight.h) of 2 to 16 rows on this thread read every weight once, by
// kernel/linear, where that may be: float32 on the CPU without gradients. Elsewhere the rows of a
// product are tokens of one sequence, and prompts keep the arithmetic that they have.
class FewRowsScope {
 public:
  FewRowsScope() : before_(active) { active = true; }
  ~FewRowsScope() { active = before_; }
  FewRowsScope(const FewRowsScope&) = delete;
  FewRowsScope& operator=(const FewRowsScope&) = delete;

  static bool on() { return active; }

 private:
  static thread_local bool active;
  bool before_;
};

}  // namespace heed
