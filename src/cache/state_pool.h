// Memory for states: 64-token pages, rings and the tensors of recurrences, with a limit on what all
// states together may take. A piece goes back when its last tensor goes, and serves again.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

namespace heed {

class StatePool {
 public:
  // `budget`: bytes that all states of the pool may hold at a time; 0: no limit.
  explicit StatePool(int64_t budget = 0);

  // Uninitialised, contiguous. Throws Error where the budget is too small; nothing has changed
  // then.
  at::Tensor take(at::IntArrayRef sizes, at::ScalarType dtype, const at::Device& device);

  int64_t budget() const;
  // Bytes that states hold; pages shared between forks once.
  int64_t used() const;
  // Bytes that wait to serve again, at most kKept.
  int64_t free() const;
  static constexpr int64_t kKept = int64_t{64} << 20;

 private:
  struct Shared;  // outlives the pool while tensors do
  std::shared_ptr<Shared> shared_;
};

}  // namespace heed
