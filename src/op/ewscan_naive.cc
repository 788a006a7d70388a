// The element-wise scans token by token, straight from their equations.
#include <ATen/ATen.h>

#include <limits>

#include "op/ewscan.h"

namespace heed::op::naive {
namespace {

using at::Tensor;

at::ScalarType compute_type(const Tensor& x, const Tensor& gate) {
  const bool wide = x.scalar_type() == at::kDouble || gate.scalar_type() == at::kDouble;
  return wide ? at::kDouble : at::kFloat;
}
Tensor in(const Tensor& t, at::ScalarType type) { return t.defined() ? t.to(type) : t; }

// Token t of [B,T,...], or what has no token dimension as it is.
Tensor token(const Tensor& x, int64_t t, bool fixed = false) { return fixed ? x : x.select(1, t); }

// [B,...] a token to [B,T,...]; `like` where there is none.
Tensor tokens(const std::vector<Tensor>& rows, const Tensor& like, at::ScalarType type) {
  return rows.empty() ? at::empty_like(like) : at::stack(rows, 1).to(type);
}

// A product of complex numbers as pairs.
Tensor times(const Tensor& a, const Tensor& b) {
  const Tensor ar = a.select(-1, 0), ai = a.select(-1, 1), br = b.select(-1, 0),
               bi = b.select(-1, 1);
  return at::stack({ar * br - ai * bi, ar * bi + ai * br}, -1);
}

}  // namespace

void ewscan(EwscanTensors& x, const kernel::NoOptions&) {
  const at::ScalarType type = compute_type(x.x, x.log_decay);
  const bool pair = x.x.dim() == 4;
  const Tensor values = in(x.x, type), turn = in(x.turn, type);
  Tensor decay = in(x.log_decay, type).exp();
  if (pair) decay = decay.unsqueeze(-1);
  Tensor h = in(x.initial_state, type);
  if (!h.defined()) {
    std::vector<int64_t> shape = values.sizes().vec();
    shape.erase(shape.begin() + 1);
    h = at::zeros(shape, values.options());
  }
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < values.size(1); ++t) {
    if (turn.defined()) h = times(token(turn, t, turn.dim() == 2).expand_as(h), h);
    h = token(decay, t, x.log_decay.dim() == 1) * h + token(values, t);
    rows.push_back(h);
  }
  x.out = tokens(rows, x.x, x.x.scalar_type());
  x.final_state = h;
}

void selective_scan(SelectiveTensors& x, const SelectiveOptions& options) {
  const at::ScalarType type = compute_type(x.x, x.dt);
  const Tensor values = in(x.x, type), A = in(x.A, type), z = in(x.z, type);
  const int64_t shared = x.x.size(2) / std::max<int64_t>(1, x.B.size(2));
  const Tensor B = in(x.B, type), C = in(x.C, type);
  Tensor d = in(x.dt, type);
  if (x.dt_bias.defined()) d = d + in(x.dt_bias, type);
  if (options.dt_softplus != 0) d = at::softplus(d, 1, 100);
  Tensor h = in(x.initial_state, type);
  if (!h.defined()) h = at::zeros({values.size(0), A.size(0), A.size(1)}, values.options());
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < values.size(1); ++t) {
    const Tensor step = token(d, t).unsqueeze(-1), v = token(values, t);
    h = at::exp(step * A) * h + step * v.unsqueeze(-1) * token(B, t).repeat_interleave(shared, 1);
    Tensor y = (h * token(C, t).repeat_interleave(shared, 1)).sum(-1);
    if (x.D.defined()) y = y + in(x.D, type) * v;
    if (z.defined()) y = y * at::silu(token(z, t));
    rows.push_back(y);
  }
  x.out = tokens(rows, x.x, x.x.scalar_type());
  x.final_state = h;
}

void lse_scan(LseTensors& x, const kernel::NoOptions&) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  const at::ScalarType type = compute_type(x.v, x.score);
  const Tensor v = in(x.v, type), score = in(x.score, type), decay = in(x.log_decay, type);
  const int64_t batch = v.size(0), heads = v.size(2);
  Tensor m = in(x.initial_m, type), u = in(x.initial_u, type), w = in(x.initial_w, type);
  if (!m.defined()) {
    m = at::full({batch, heads}, kNone, v.options());
    u = at::zeros({batch, heads, v.size(3)}, v.options());
    w = at::zeros({batch, heads}, v.options());
  }
  // exp(a - m), 0 where a is -inf, without a NaN in values or gradients.
  const auto relative = [&](const Tensor& a, const Tensor& largest) {
    const Tensor none = a.eq(kNone);
    return at::exp(a.masked_fill(none, 0) - largest.masked_fill(none, 0)).masked_fill(none, 0);
  };
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < v.size(1); ++t) {
    const Tensor s = token(score, t);
    const Tensor before = decay.defined() ? m + token(decay, t, decay.dim() == 1) : m;
    m = at::maximum(before, s);
    const Tensor e = relative(before, m), f = relative(s, m);
    u = e.unsqueeze(-1) * u + f.unsqueeze(-1) * token(v, t);
    w = e * w + f;
    const Tensor none = w.eq(0).unsqueeze(-1);
    rows.push_back((u / w.unsqueeze(-1).masked_fill(none, 1)).masked_fill(none, 0));
  }
  x.out = tokens(rows, x.v, x.v.scalar_type());
  x.final_m = m;
  x.final_u = u;
  x.final_w = w;
}

}  // namespace heed::op::naive
