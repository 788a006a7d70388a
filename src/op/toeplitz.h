// Mixing of tokens by weights of their distance, alone and times a product of features.
#pragma once

#include <ATen/core/Tensor.h>

namespace heed::op {

// y_i = sum_j c_{j-i} x_j. c [H,T+S-1], entry j - i + T - 1 for query i and key j; x [B,H,S,...] ->
// y [B,H,T,...], by FFT of length T + S or a little more: O((T + S) log) and memory linear in T + S
// for each trailing entry. Computed in x's dtype, float32 or float64. Differentiable. Throws
// UsageError for shapes that do not fit.
at::Tensor toeplitz(const at::Tensor& c, const at::Tensor& x, int64_t queries);

// y_i = sum_j c_{j-i} (f_i . g_j) x_j. f [B,H,T,m], g [B,H,S,m], x [B,H,S,V] and c as above, of one
// dtype, float32 or float64; -> y [B,H,T,V]. Differentiable.
//
// weighted_toeplitz computes runs of queries with all their keys (causal: c is 0 for later keys,
// which are left out): O(T S (m + V)), memory linear in T + S, in the backward pass too.
// weighted_toeplitz_fft transforms the m V columns g_r x_e: O((T + S) log (T + S) m V). A transform
// rounds every sum as it rounds the largest. fft_is_faster says which of the two takes less time.
at::Tensor weighted_toeplitz(const at::Tensor& f, const at::Tensor& g, const at::Tensor& x,
                             const at::Tensor& c, bool causal);
at::Tensor weighted_toeplitz_fft(const at::Tensor& f, const at::Tensor& g, const at::Tensor& x,
                                 const at::Tensor& c);
bool fft_is_faster(int64_t queries, int64_t keys, int64_t features, int64_t width, bool causal);

}  // namespace heed::op
