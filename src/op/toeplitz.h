// Mixing of tokens by fixed weights of their distance: y_i = sum_j c_{j-i} x_j.
#pragma once

#include <ATen/core/Tensor.h>

namespace heed::op {

// c [H,T+S-1], entry j - i + T - 1 for query i and key j; x [B,H,S,...] -> y [B,H,T,...], by FFT of
// length T + S or a little more: O((T + S) log) and memory linear in T + S for each trailing entry.
// Computed in x's dtype, float32 or float64. Differentiable. Throws UsageError for shapes that do
// not fit.
at::Tensor toeplitz(const at::Tensor& c, const at::Tensor& x, int64_t queries);

}  // namespace heed::op
