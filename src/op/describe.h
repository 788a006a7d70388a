// Shapes in error messages.
#pragma once

#include <ATen/core/Tensor.h>
#include <fmt/ranges.h>

#include <string>

namespace heed::op {

inline std::string sizes_of(at::IntArrayRef sizes) {
  return fmt::format("[{}]", fmt::join(sizes, ","));
}
inline std::string sizes_of(const at::Tensor& t) { return sizes_of(t.sizes()); }

}  // namespace heed::op
