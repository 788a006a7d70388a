// Matrix products. Every product of activations with stored weights goes through here
// (docs/decisions): nothing else touches weight bytes.
#pragma once

#include <ATen/core/Tensor.h>

namespace heed {

// A matrix [out, in]. Rows may be a slice of a larger matrix (q, k and v of a layer lie one after
// another).
struct Weight {
  at::Tensor data;
  bool defined() const { return data.defined(); }
  int64_t out() const { return data.size(0); }
  int64_t in() const { return data.size(1); }
};

// x [..., in] -> x W^T + bias [..., out]; bias [out] or undefined. Differentiable. On the CPU,
// where no gradient is asked for, oneDNN's kernel runs (faster for few rows, and for many).
at::Tensor linear(const at::Tensor& x, const Weight& weight, const at::Tensor& bias = {});

// The same with what follows done in one pass, without gradients: act(x W^T + bias) for "silu",
// "gelu", "gelu_tanh", "relu"; other * (x W^T + bias); other + x W^T + bias.
at::Tensor linear_activation(const at::Tensor& x, const Weight& weight, const at::Tensor& bias,
                             const std::string& activation);
at::Tensor linear_times(const at::Tensor& x, const Weight& weight, const at::Tensor& bias,
                        const at::Tensor& other);
at::Tensor linear_plus(const at::Tensor& x, const Weight& weight, const at::Tensor& bias,
                       const at::Tensor& other);

// silu | gelu | gelu_tanh | relu; differentiable.
at::Tensor activate(const at::Tensor& x, const std::string& activation);

}  // namespace heed
