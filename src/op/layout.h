// Orders of tokens: which token stands where. Attention over a grid with dilation is attention
// without it over every group of cells that are a multiple of the dilation apart; regions of an
// image are runs of tokens once their cells lie side by side.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace heed::op {

// Parts of a grid that have one shape: row g of `tokens` [groups, cells] holds the tokens of one of
// them, in the grid's order (last axis fastest).
struct GridParts {
  std::vector<int64_t> lengths;
  at::Tensor tokens;  // int64, on the CPU
};

// The groups of cells whose places on every axis agree modulo `dilation`, by shape (an axis that is
// no multiple of its dilation has groups of two lengths).
std::vector<GridParts> dilation_groups(const std::vector<int64_t>& lengths,
                                       const std::vector<int64_t>& dilation);

// Tokens of a grid region by region: `regions` equal parts an axis, in the order of the grid, the
// cells of each in the grid's order. int64 [cells], on the CPU. UsageError if an axis is no
// multiple of its number of regions.
at::Tensor region_order(const std::vector<int64_t>& lengths, const std::vector<int64_t>& regions);

// order[inverse[i]] == i.
at::Tensor inverse_order(const at::Tensor& order);

}  // namespace heed::op
