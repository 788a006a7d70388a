// See norm.h.
#include "nn/norm.h"

#include <ATen/ATen.h>

#include "nn/rows.h"

namespace heed {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor f = x.to(at::kFloat);
  const at::Tensor y =
      f.mul(at::rsqrt(f.square().mean(-1, true).add(eps))).mul(weight.to(at::kFloat));
  return y.to(x.scalar_type());
}

at::Tensor l2_norm(const at::Tensor& x, double eps) {
  const at::Tensor f = x.to(at::kFloat);
  return f.mul(at::rsqrt(f.square().sum(-1, true).add(eps))).to(x.scalar_type());
}

at::Tensor normalise(const at::Tensor& x, const Norm& n) {
  if (n.layer) return at::layer_norm(x, {x.size(-1)}, n.weight, n.bias, n.eps);
  if (!at::GradMode::is_enabled() && x.is_cpu() && x.is_contiguous() &&
      (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16)) {
    return rms_norm_rows(x, n.weight, n.eps);
  }
  const auto wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::rms_norm(x.to(wide), {x.size(-1)}, {}, n.eps).to(x.scalar_type()) * n.weight;
}

}  // namespace heed
