#include "op/layout.h"

#include <ATen/ATen.h>

#include "io/error.h"

namespace heed::op {
namespace {

// Tokens at the product of the given places of each axis, in the grid's order.
at::Tensor product_of(const std::vector<int64_t>& lengths, const std::vector<at::Tensor>& places) {
  at::Tensor tokens = at::zeros({1}, at::kLong);
  for (size_t i = 0; i < lengths.size(); ++i) {
    tokens = tokens.unsqueeze(1).mul(lengths[i]).add(places[i].unsqueeze(0)).flatten();
  }
  return tokens;
}

// Calls f(index of each axis) for all indices below `sizes`, last axis fastest.
template <class F>
void for_each_index(const std::vector<int64_t>& sizes, F&& f) {
  std::vector<int64_t> index(sizes.size(), 0);
  for (;;) {
    f(index);
    size_t axis = sizes.size();
    while (axis > 0 && ++index[axis - 1] == sizes[axis - 1]) index[--axis] = 0;
    if (axis == 0) return;
  }
}

}  // namespace

std::vector<GridParts> dilation_groups(const std::vector<int64_t>& lengths,
                                       const std::vector<int64_t>& dilation) {
  std::vector<GridParts> parts;
  std::vector<std::vector<at::Tensor>> tokens;
  for_each_index(dilation, [&](const std::vector<int64_t>& group) {
    std::vector<int64_t> shape;
    std::vector<at::Tensor> places;
    for (size_t i = 0; i < lengths.size(); ++i) {
      places.push_back(at::arange(group[i], lengths[i], dilation[i], at::kLong));
      shape.push_back(places.back().size(0));
    }
    size_t part = 0;
    while (part < parts.size() && parts[part].lengths != shape) ++part;
    if (part == parts.size()) {
      parts.push_back({shape, at::Tensor()});
      tokens.emplace_back();
    }
    tokens[part].push_back(product_of(lengths, places));
  });
  for (size_t i = 0; i < parts.size(); ++i) parts[i].tokens = at::stack(tokens[i]);
  return parts;
}

at::Tensor region_order(const std::vector<int64_t>& lengths, const std::vector<int64_t>& regions) {
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (regions[i] < 1 || lengths[i] % regions[i] != 0) {
      throw UsageError("axis {} of the grid has {} places, expected a multiple of {} regions", i,
                       lengths[i], regions[i]);
    }
  }
  std::vector<at::Tensor> tokens;
  for_each_index(regions, [&](const std::vector<int64_t>& region) {
    std::vector<at::Tensor> places;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const int64_t size = lengths[i] / regions[i];
      places.push_back(at::arange(region[i] * size, (region[i] + 1) * size, at::kLong));
    }
    tokens.push_back(product_of(lengths, places));
  });
  return at::cat(tokens);
}

at::Tensor inverse_order(const at::Tensor& order) {
  const at::Tensor inverse = at::empty_like(order);
  inverse.index_put_({order}, at::arange(order.size(0), order.options()));
  return inverse;
}

}  // namespace heed::op
