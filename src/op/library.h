// The operators torch.ops.heed.*: what is registered, for the program and the tests that look.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace heed::op {

// Names such as "heed::attend", sorted, each with a schema in PyTorch's dispatcher.
std::vector<std::string> registered_operators();

// Does nothing but keep the registration of this room in a static link: callers of the dispatcher
// call it.
void link_library();

inline at::Tensor or_undefined(const std::optional<at::Tensor>& t) {
  return t.value_or(at::Tensor());
}
inline std::optional<at::Tensor> or_none(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

}  // namespace heed::op
