// See state_pool.h.
#include "cache/state_pool.h"

#include <ATen/ATen.h>

#include <map>
#include <mutex>

#include "io/error.h"

namespace heed {

struct StatePool::Shared {
  std::mutex mutex;
  int64_t budget = 0, used = 0, free = 0;
  std::map<std::pair<std::string, int64_t>, std::vector<at::Tensor>> pieces;  // by device and size
};

StatePool::StatePool(int64_t budget) : shared_(std::make_shared<Shared>()) {
  if (budget < 0) throw UsageError("a budget for states must not be negative, it is {}", budget);
  shared_->budget = budget;
}

at::Tensor StatePool::take(at::IntArrayRef sizes, at::ScalarType dtype, const at::Device& device) {
  const int64_t bytes =
      c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(dtype));
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  if (bytes == 0) return at::empty(sizes, options);
  const auto key = std::pair(device.str(), bytes);
  at::Tensor piece;
  {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->budget > 0 && shared_->used + bytes > shared_->budget) {
      throw Error(
          "the states of all sequences would take {} bytes more than their budget of {} ({} are "
          "in use): end a sequence, or raise the budget",
          shared_->used + bytes - shared_->budget, shared_->budget, shared_->used);
    }
    shared_->used += bytes;
    if (const auto it = shared_->pieces.find(key);
        it != shared_->pieces.end() && !it->second.empty()) {
      piece = std::move(it->second.back());
      it->second.pop_back();
      shared_->free -= bytes;
    }
  }
  if (!piece.defined()) piece = at::empty({bytes}, options.dtype(at::kByte));
  void* const data = piece.mutable_data_ptr();
  const auto give_back = [shared = shared_, key, piece](void*) mutable {
    const std::lock_guard lock(shared->mutex);
    shared->used -= key.second;
    if (shared->free + key.second > kKept) return;
    shared->free += key.second;
    shared->pieces[key].push_back(std::move(piece));
  };
  return at::from_blob(data, sizes, give_back, options);
}

int64_t StatePool::budget() const { return shared_->budget; }

int64_t StatePool::used() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->used;
}

int64_t StatePool::free() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->free;
}

}  // namespace heed
