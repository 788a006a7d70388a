#include "train/loss.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "io/error.h"

namespace heed::train {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct ChunkedCrossEntropy : torch::autograd::Function<ChunkedCrossEntropy> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden,
                            const at::Tensor& head, const at::Tensor& targets, int64_t chunk,
                            bool with_gradients) {
    const int64_t rows = hidden.size(0);
    const auto f32 = hidden.options().dtype(at::kFloat);
    const at::Tensor valid = targets.ge(0);
    const at::Tensor scale = valid.sum().clamp_min(1).to(at::kFloat).reciprocal();
    const at::Tensor weight = valid.to(at::kFloat) * scale;  // of each row in the mean
    const at::Tensor index = targets.clamp_min(0).unsqueeze(1);
    at::Tensor loss = at::zeros({}, f32);
    at::Tensor grad_hidden, grad_head;
    if (with_gradients) {
      grad_hidden = at::empty_like(hidden);
      grad_head = at::zeros(head.sizes(), f32);
    }
    for (int64_t begin = 0; begin < rows; begin += chunk) {
      const int64_t count = std::min(chunk, rows - begin);
      const at::Tensor h = hidden.narrow(0, begin, count);
      const at::Tensor w = weight.narrow(0, begin, count).unsqueeze(1);
      const at::Tensor i = index.narrow(0, begin, count);
      const at::Tensor logits = at::mm(h, head.t());
      at::Tensor p = at::_log_softmax(logits.to(at::kFloat), 1, false);
      loss.sub_((p.gather(1, i) * w).sum());
      if (!with_gradients) continue;
      p.exp_();
      p.scatter_add_(1, i, at::full({1, 1}, -1.0, f32).expand({count, 1}));
      const at::Tensor g = p.mul_(w).to(hidden.scalar_type());
      at::Tensor grad_rows = grad_hidden.narrow(0, begin, count);
      at::mm_out(grad_rows, g, head);
      grad_head.add_(at::mm(g.t(), h));
    }
    if (with_gradients) {
      context->save_for_backward({grad_hidden, grad_head.to(head.scalar_type())});
    }
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor g = grads[0];
    return {saved[0] * g.to(saved[0].scalar_type()), saved[1] * g.to(saved[1].scalar_type()),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor chunked_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                                 const at::Tensor& targets, int64_t chunk) {
  if (hidden.dim() != 2 || head.dim() != 2 || targets.dim() != 1 ||
      hidden.size(1) != head.size(1) || targets.size(0) != hidden.size(0) ||
      hidden.scalar_type() != head.scalar_type() || targets.scalar_type() != at::kLong) {
    throw UsageError("cross-entropy needs hidden [N,D], head [V,D] of one dtype and int64 targets");
  }
  const bool gradients =
      at::GradMode::is_enabled() && (hidden.requires_grad() || head.requires_grad());
  return ChunkedCrossEntropy::apply(hidden, head, targets, chunk, gradients);
}

}  // namespace heed::train
