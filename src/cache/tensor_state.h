// A state of constant size: named tensors that a step replaces. What recurrences and short
// convolutions keep for one sequence.
#pragma once

#include "cache/state.h"

namespace heed {

class TensorState : public State {
 public:
  // `tensors` are zero, as they stand before the first token.
  explicit TensorState(NamedTensors tensors);

  std::unique_ptr<State> fork() const override;
  int64_t bytes() const override;
  int64_t length() const override { return length_; }
  // 0, or the length itself: a recurrence has forgotten everything between.
  void truncate(int64_t length) override;
  void save(NamedTensors& out, const std::string& prefix) const override;
  void load(const NamedTensors& in, const std::string& prefix) override;

  // Written in place by whoever owns the layer; shapes never change.
  at::Tensor& tensor(const std::string& name);
  void advance(int64_t tokens) { length_ += tokens; }

 private:
  NamedTensors tensors_;
  int64_t length_ = 0;
};

}  // namespace heed
