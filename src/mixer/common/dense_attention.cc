#include "mixer/common/dense_attention.h"

#include <ATen/ATen.h>

namespace heed::mixer {
namespace {

// [B,T,Hk,D] -> [B,H,T,D]
at::Tensor heads_first(const at::Tensor& t, int64_t heads) {
  const at::Tensor wide = t.to(dense_type(t)).transpose(1, 2);
  return heads == t.size(2) ? wide : wide.repeat_interleave(heads / t.size(2), 1);
}

}  // namespace

at::ScalarType dense_type(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor dense_logits(const at::Tensor& q, const at::Tensor& k, double scale) {
  const int64_t heads = q.size(2);
  return at::matmul(heads_first(q, heads).mul(scale), heads_first(k, heads).transpose(2, 3));
}

at::Tensor dense_visible(int64_t tq, int64_t tk, bool causal, const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor p = at::arange(tq, options).add(tk - tq).unsqueeze(1);
  const at::Tensor j = at::arange(tk, options).unsqueeze(0);
  return causal ? j.le(p) : at::ones({tq, tk}, options.dtype(at::kBool));
}

std::pair<at::Tensor, at::Tensor> dense_softmax(const at::Tensor& x, const at::Tensor& visible) {
  const double inf = std::numeric_limits<double>::infinity();
  const at::Tensor seen = x.masked_fill(visible.logical_not(), -inf);
  if (x.size(-1) == 0) return {x, at::full(x.sizes().slice(0, 3), -inf, x.options())};
  at::Tensor m = seen.detach().amax(-1, true);
  m = m.masked_fill(m.eq(-inf), 0.0);
  const at::Tensor e = at::exp(seen.sub(m)), sum = e.sum(-1, true);
  const at::Tensor blind = sum.detach().eq(0);
  const at::Tensor divisor = sum.masked_fill(blind, 1.0);
  return {e.div(divisor), at::log(divisor).add(m).masked_fill(blind, -inf).squeeze(-1)};
}

at::Tensor dense_values(const at::Tensor& w, const at::Tensor& v) {
  return at::matmul(w, heads_first(v, w.size(1))).transpose(1, 2).to(v.scalar_type());
}

}  // namespace heed::mixer
