// Matrix products. Every product of activations with stored weights goes through here
// (docs/decisions): nothing else touches weight bytes.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

namespace heed {

struct BlockWeight;

// A matrix [out, in]. Rows may be a slice of a larger matrix (q, k and v of a layer lie one after
// another).
struct Weight {
  at::Tensor data;
  // Where it is kept in blocks (block_weight.h); `data` then has its sizes alone, and NaN.
  std::shared_ptr<const BlockWeight> blocks;
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

// The same for weights that read the same x. linear_joint: all products one after another in the
// last dimension. linear_gated: act(x Wg^T + bias) * (x W^T + bias), without gradients.
at::Tensor linear_joint(const at::Tensor& x, const std::vector<const Weight*>& weights,
                        const std::vector<at::Tensor>& biases);
at::Tensor linear_gated(const at::Tensor& x, const Weight& gate, const at::Tensor& gate_bias,
                        const Weight& weight, const at::Tensor& bias,
                        const std::string& activation);

// Rows `ids` (int64) of the matrix: [..., in].
at::Tensor rows_of(const Weight& weight, const at::Tensor& ids);

// silu | gelu | gelu_tanh | relu; differentiable.
at::Tensor activate(const at::Tensor& x, const std::string& activation);

}  // namespace heed
