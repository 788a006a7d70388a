#include "cache/tensor_state.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

namespace heed {

TensorState::TensorState(NamedTensors tensors) : tensors_(std::move(tensors)) {}

std::unique_ptr<State> TensorState::fork() const {
  auto copy = std::make_unique<TensorState>(*this);
  for (auto& [name, t] : copy->tensors_) t = t.clone();
  return copy;
}

int64_t TensorState::bytes() const {
  int64_t sum = 0;
  for (const auto& [name, t] : tensors_) sum += static_cast<int64_t>(t.nbytes());
  return sum;
}

void TensorState::truncate(int64_t length) {
  if (length == length_) return;
  if (length != 0) {
    throw Error(
        "a recurrent state of {} tokens cannot be cut back to {}; keep a fork of it at that length",
        length_, length);
  }
  for (auto& [name, t] : tensors_) t.zero_();
  length_ = 0;
}

void TensorState::save(NamedTensors& out, const std::string& prefix) const {
  for (const auto& [name, t] : tensors_) out[prefix + name] = t.clone();
  out[prefix + "length"] = at::full({1}, length_, at::kLong);
}

void TensorState::load(const NamedTensors& in, const std::string& prefix) {
  const auto find = [&](const std::string& name) -> const at::Tensor& {
    const auto it = in.find(prefix + name);
    if (it == in.end()) throw Error("state: tensor {}{} is missing", prefix, name);
    return it->second;
  };
  for (const auto& [name, t] : tensors_) {
    const at::Tensor& value = find(name);
    if (value.sizes() != t.sizes()) {
      throw Error("state: tensor {}{} has shape [{}], expected [{}]", prefix, name,
                  fmt::join(value.sizes(), ","), fmt::join(t.sizes(), ","));
    }
  }
  const at::Tensor& length = find("length");
  if (length.scalar_type() != at::kLong || length.numel() != 1 || length.item<int64_t>() < 0) {
    throw Error("state: tensor {}length must be one int64, at least 0", prefix);
  }
  for (auto& [name, t] : tensors_) t.copy_(find(name));
  length_ = length.item<int64_t>();
}

at::Tensor& TensorState::tensor(const std::string& name) {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) throw Error("state: there is no tensor {}", name);
  return it->second;
}

}  // namespace heed
