// Small fused loops over rows, on the CPU and without gradients: what a decode step would otherwise
// spend in dozens of PyTorch operators. The differentiable forms are in norm.cc and rope.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

namespace heed {

// RMSNorm (arXiv 1910.07467): x w / sqrt(mean(x^2) + eps). x [N, C] float32 or bfloat16,
// contiguous; the mean in float32; the normalised row is rounded to x's dtype before the product,
// as transformers does.
at::Tensor rms_norm_rows(const at::Tensor& x, const at::Tensor& weight, double eps);

// In place on qkv [N, (Hq + 2 Hk) D], rows of q, k and v heads: RMSNorm of each q and k head where
// weights are given, then rotation of pairs (i, i + D/2) by cos, sin float32 [positions, D/2]; row
// n stands at positions[n]. cos undefined: no rotation.
void normalise_and_rotate(const at::Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t head_dim,
                          std::span<const int64_t> positions, const at::Tensor& cos,
                          const at::Tensor& sin, const at::Tensor& q_norm, const at::Tensor& k_norm,
                          double eps);

}  // namespace heed
