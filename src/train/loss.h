// Cross-entropy of a language model's head, without ever holding all logits.
#pragma once

#include <ATen/core/Tensor.h>

namespace heed::train {

// Rows whose logits exist at one time.
constexpr int64_t kLogitRows = 8192;

// Mean over targets >= 0 of -ln softmax(hidden head^T)[target]: float32 scalar; 0 if there is none.
// hidden [N,D] and head [V,D] in one dtype, targets int64 [N]. Differentiable in hidden and head.
// Logits exist for `chunk` rows at a time: gradients are computed in the forward pass (as in Liger
// Kernel, arXiv 2410.10989), so nothing is computed twice. Log-probabilities and sums are float32.
at::Tensor chunked_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                                 const at::Tensor& targets, int64_t chunk = kLogitRows);

}  // namespace heed::train
