// Norms over the last dimension.
#pragma once

#include <ATen/core/Tensor.h>

namespace heed {

// RMSNorm (arXiv 1910.07467) as recurrent layers use it: x rsqrt(mean x^2 + eps) weight, in float32
// to the end, then in x's dtype. Differentiable.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
// x rsqrt(sum x^2 + eps), in float32, then in x's dtype. Differentiable.
at::Tensor l2_norm(const at::Tensor& x, double eps);

// A norm of a transformer's block.
struct Norm {
  at::Tensor weight, bias;  // bias only of LayerNorm
  double eps = 1e-6;
  bool layer = false;  // LayerNorm in place of RMSNorm
};

// x normalised, in x's dtype. RMSNorm's normalised vector is rounded to that dtype before the
// product with the weight, as transformers does. Differentiable; without gradients the CPU runs one
// loop (rows.h).
at::Tensor normalise(const at::Tensor& x, const Norm& norm);

}  // namespace heed
