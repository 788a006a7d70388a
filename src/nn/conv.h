// Short convolutions over time.
#pragma once

#include <ATen/core/Tensor.h>

namespace heed {

// Depthwise causal convolution over x [B, taps-1+T, W], whose first taps-1 rows are what came
// before: y_t = sum_i weight[:, i] x_{t+i} + bias, [B, T, W]. weight [W, taps] (the last tap meets
// the current token), bias [W] or undefined. Differentiable.
at::Tensor short_conv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

}  // namespace heed
