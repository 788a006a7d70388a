// The equations of kernel/pool/pool.h with a weight for every query and key.
#include <ATen/ATen.h>

#include "op/attend_shape.h"
#include "op/pool.h"

namespace heed::op {
namespace {

using at::Tensor;

// One sequence, or several of one length.
Tensor read(const PoolTensors& x, const PoolOptions& options, bool causal) {
  const int64_t group = x.q.size(2) / x.k.size(2);
  const auto heads_first = [&](const Tensor& t, int64_t repeat) {
    const Tensor y = t.transpose(1, 2);
    return repeat == 1 ? y : y.repeat_interleave(repeat, 1);
  };
  const Tensor v = heads_first(x.v, group);
  Tensor weights = at::matmul(heads_first(x.q, 1), heads_first(x.k, group).transpose(-1, -2));
  if (x.key_weight.defined()) weights = weights.mul(heads_first(x.key_weight, group).unsqueeze(-2));
  const int64_t keys = x.k.size(1);
  Tensor seen = at::ones({x.q.size(1), keys}, x.q.options());
  if (causal) {
    seen = seen.tril();
    weights = weights.tril();
  }
  const Tensor count = seen.sum(-1, true).clamp_min(1);
  Tensor y = pool_epilogue(at::matmul(weights, v), weights.sum(-1, true),
                           at::matmul(seen.div(count), v), count, options);
  if (keys == 0) y = at::zeros_like(y);
  y = y.transpose(1, 2);
  return x.row_scale.defined() ? y.mul(x.row_scale.unsqueeze(-1)) : y;
}

}  // namespace

Tensor pool_epilogue(const Tensor& x, const Tensor& sum, const Tensor& mean, const Tensor& count,
                     const PoolOptions& o) {
  const auto scaled = [&](const Tensor& t) {
    return o.by_count ? t.mul(o.scale).div(count) : t.mul(o.scale);
  };
  Tensor y = scaled(x);
  const Tensor d = needs_sums(o) ? scaled(sum) : Tensor();
  if (o.a1 != 0) {
    const Tensor divisor = o.clamp ? d.clamp_min(o.eps) : d.add(o.eps);
    y = o.a0 == 0 ? y.mul(o.a1).div(divisor) : y.mul(divisor.reciprocal().mul(o.a1).add(o.a0));
  } else if (o.a0 != 1) {
    y = y.mul(o.a0);
  }
  if (o.b1 != 0) return y.add(mean.mul(d.mul(o.b1).add(o.b0)));
  return o.b0 != 0 ? y.add(mean.mul(o.b0)) : y;
}

Tensor pool_naive(const PoolTensors& in, const PoolOptions& options, const Tensor& cu_seqlens,
                  bool causal) {
  const auto compute = in.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  PoolTensors x = in;
  for (Tensor* t : {&x.q, &x.k, &x.v, &x.key_weight, &x.row_scale}) {
    if (t->defined()) *t = t->to(compute);
  }
  if (!cu_seqlens.defined()) return read(x, options, causal).to(in.v.scalar_type());
  const std::vector<int64_t> offset = read_offsets(cu_seqlens, x.q.size(1), "cu_seqlens");
  std::vector<Tensor> outs;
  for (size_t n = 0; n + 1 < offset.size(); ++n) {
    PoolTensors part = x;
    for (Tensor* t : {&part.q, &part.k, &part.v, &part.key_weight, &part.row_scale}) {
      if (t->defined()) *t = t->slice(1, offset[n], offset[n + 1]);
    }
    outs.push_back(read(part, options, causal));
  }
  const Tensor out = outs.empty() ? at::zeros_like(x.v) : at::cat(outs, 1);
  return out.to(in.v.scalar_type());
}

}  // namespace heed::op
