// The recurrence of scan.h and its adjoint, one token after the other in double precision. No
// chunks, no SIMD, no log-space tricks: exp(-inf) = 0 is a reset by itself.
#include <cmath>
#include <vector>

#include "kernel/scan/problem.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel {
namespace {

using Row = std::vector<double>;

// One (sequence, head): its tensors as rows of doubles.
struct Reader {
  const ScanProblem& p;
  int64_t b, t0, h, n;

  Row row(const ScanTensor& x, int64_t t, int64_t size) const {
    Row out(size, 0.0);
    if (!x) return out;
    const int64_t at = b * x.b + (t0 + t) * x.t + h * x.h;
    for (int64_t i = 0; i < size; ++i) out[i] = load_element(x.data, x.dtype, at + i);
    return out;
  }
  void write(const ScanTensor& x, int64_t t, const Row& values) const {
    if (!x) return;
    const int64_t at = b * x.b + (t0 + t) * x.t + h * x.h;
    for (size_t i = 0; i < values.size(); ++i) store_element(x.data, x.dtype, at + i, values[i]);
  }
  Row log_decay(int64_t t) const {
    if (p.decay == Decay::kNone) return Row(p.dk, 0.0);
    if (p.decay == Decay::kChannel) return row(p.log_decay, t, p.dk);
    return Row(p.dk, row(p.log_decay, t, 1)[0]);
  }
  Row bonus() const {
    Row out(p.dk, 0.0);
    if (p.bonus) {
      for (int64_t i = 0; i < p.dk; ++i) {
        out[i] = load_element(p.bonus.data, p.bonus.dtype, h * p.bonus.h + i);
      }
    }
    return out;
  }
  Row state(const ScanTensor& x) const {
    Row s(p.dk * p.dv, 0.0);
    if (!x) return s;
    for (int64_t d = 0; d < p.dk; ++d) {
      for (int64_t e = 0; e < p.dv; ++e) {
        s[d * p.dv + e] = load_element(x.data, x.dtype, n * x.b + h * x.t + d * x.h + e);
      }
    }
    return s;
  }
  void write_state(const ScanTensor& x, const Row& s) const {
    if (!x) return;
    for (int64_t d = 0; d < p.dk; ++d) {
      for (int64_t e = 0; e < p.dv; ++e) {
        store_element(x.data, x.dtype, n * x.b + h * x.t + d * x.h + e, s[d * p.dv + e]);
      }
    }
  }
};

// x S, a row over the columns of S.
Row times(const Row& x, const Row& s, int64_t dv) {
  Row out(dv, 0.0);
  for (size_t d = 0; d < x.size(); ++d) {
    for (int64_t e = 0; e < dv; ++e) out[e] += x[d] * s[d * dv + e];
  }
  return out;
}

// y S^T, a row over the rows of S.
Row times_transposed(const Row& y, const Row& s, int64_t dk) {
  const int64_t dv = static_cast<int64_t>(y.size());
  Row out(dk, 0.0);
  for (int64_t d = 0; d < dk; ++d) {
    for (int64_t e = 0; e < dv; ++e) out[d] += s[d * dv + e] * y[e];
  }
  return out;
}

// S += factor x^T y.
void add_outer(Row& s, const Row& x, const Row& y, double factor = 1) {
  const size_t dv = y.size();
  for (size_t d = 0; d < x.size(); ++d) {
    for (size_t e = 0; e < dv; ++e) s[d * dv + e] += factor * x[d] * y[e];
  }
}

double dot(const Row& x, const Row& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

Row multiply(const Row& x, const Row& y) {
  Row out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * y[i];
  return out;
}

// S := diag(exp(log_decay)) S.
void decay_rows(Row& s, const Row& log_decay) {
  const size_t dv = s.size() / log_decay.size();
  for (size_t d = 0; d < log_decay.size(); ++d) {
    for (size_t e = 0; e < dv; ++e) s[d * dv + e] *= std::exp(log_decay[d]);
  }
}

// S_{t-1} -> S_t.
void advance(const Reader& in, int64_t t, Row& s) {
  const ScanProblem& p = in.p;
  const Row k = in.row(p.k, t, p.dk), v = in.row(p.v, t, p.dv);
  if (p.correction == Correction::kGeneral) {
    const Row y = times(in.row(p.r, t, p.dk), s, p.dv);
    decay_rows(s, in.log_decay(t));
    add_outer(s, in.row(p.p, t, p.dk), y);
    add_outer(s, k, v);
  } else if (p.correction == Correction::kDelta) {
    decay_rows(s, in.log_decay(t));
    const Row y = times(k, s, p.dv);
    Row u(p.dv);
    for (int64_t e = 0; e < p.dv; ++e) u[e] = v[e] - y[e];
    add_outer(s, k, u, in.row(p.beta, t, 1)[0]);
  } else {
    decay_rows(s, in.log_decay(t));
    add_outer(s, k, v);
  }
}

}  // namespace

heed_status scan_reference(const ScanArgs& args) {
  ScanProblem p;
  const heed_status status = check_scan(args, ScanDtypes::kReference, true, &p);
  if (status != HEED_OK) return status;
  for (int64_t n = 0; n < p.sequences; ++n) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const auto span = p.span(n);
      const Reader in{p, span.b, span.begin, h, n};
      const Row bonus = in.bonus();
      Row s = in.state(p.initial_state);
      for (int64_t t = 0; t < span.length; ++t) {
        const Row q = in.row(p.q, t, p.dk);
        Row out;
        if (p.read_before()) {
          out = times(q, s, p.dv);
          const double own = dot(q, multiply(bonus, in.row(p.k, t, p.dk)));
          const Row v = in.row(p.v, t, p.dv);
          for (int64_t e = 0; e < p.dv; ++e) out[e] += own * v[e];
          advance(in, t, s);
        } else {
          advance(in, t, s);
          out = times(q, s, p.dv);
        }
        for (double& value : out) value *= p.scale;
        in.write(p.out, t, out);
      }
      in.write_state(p.final_state, s);
    }
  }
  return HEED_OK;
}

heed_status scan_backward_reference(const ScanArgs& args, const ScanGrads& grads) {
  ScanProblem p;
  heed_status status = check_scan(args, ScanDtypes::kReference, false, &p);
  if (status != HEED_OK) return status;
  ScanGradProblem g;
  status = check_scan_grads(grads, ScanDtypes::kReference, p, &g);
  if (status != HEED_OK) return status;
  const int64_t dk = p.dk, dv = p.dv;
  for (int64_t h = 0; h < p.heads; ++h) {
    double grad_head_decay = 0;
    Row grad_bonus(dk, 0.0);
    for (int64_t n = 0; n < p.sequences; ++n) {
      const auto span = p.span(n);
      const Reader in{p, span.b, span.begin, h, n};
      const Row bonus = in.bonus();
      std::vector<Row> states{in.state(p.initial_state)};
      for (int64_t t = 0; t < span.length; ++t) {
        states.push_back(states.back());
        advance(in, t, states.back());
      }
      Row ds = in.state(g.grad_final_state);
      for (int64_t t = span.length - 1; t >= 0; --t) {
        const Row &before = states[t], &after = states[t + 1];
        const Row q = in.row(p.q, t, dk), k = in.row(p.k, t, dk), v = in.row(p.v, t, dv);
        const Row grad_out = in.row(g.grad_out, t, dv), log_decay = in.log_decay(t);
        Row dq = times_transposed(grad_out, p.read_before() ? before : after, dk);
        if (!p.read_before()) add_outer(ds, q, grad_out, p.scale);
        Row grad_k, grad_v, grad_decay(dk, 0.0);
        if (p.correction == Correction::kGeneral) {
          const Row r = in.row(p.r, t, dk), pt = in.row(p.p, t, dk);
          grad_k = times_transposed(v, ds, dk);
          grad_v = times(k, ds, dv);
          in.write(g.p, t, times_transposed(times(r, before, dv), ds, dk));
          const Row grad_y = times(pt, ds, dv);
          in.write(g.r, t, times_transposed(grad_y, before, dk));
          for (int64_t i = 0; i < dk * dv; ++i) grad_decay[i / dv] += ds[i] * before[i];
          decay_rows(ds, log_decay);
          add_outer(ds, r, grad_y);
        } else if (p.correction == Correction::kDelta) {
          Row decayed = before;
          decay_rows(decayed, log_decay);
          const double beta = in.row(p.beta, t, 1)[0];
          const Row y = times(k, decayed, dv), grad_write = times(k, ds, dv);
          Row u(dv), write(dv), grad_u(dv);
          for (int64_t e = 0; e < dv; ++e) {
            u[e] = v[e] - y[e];
            write[e] = beta * u[e];
            grad_u[e] = beta * grad_write[e];
          }
          in.write(g.beta, t, Row{dot(grad_write, u)});
          grad_v = grad_u;
          grad_k = times_transposed(write, ds, dk);
          const Row through_read = times_transposed(grad_u, decayed, dk);
          for (int64_t d = 0; d < dk; ++d) grad_k[d] -= through_read[d];
          add_outer(ds, k, grad_u, -1);
          for (int64_t i = 0; i < dk * dv; ++i) grad_decay[i / dv] += ds[i] * before[i];
          decay_rows(ds, log_decay);
        } else {
          grad_k = times_transposed(v, ds, dk);
          grad_v = times(k, ds, dv);
          for (int64_t i = 0; i < dk * dv; ++i) grad_decay[i / dv] += ds[i] * before[i];
          decay_rows(ds, log_decay);
        }
        if (p.read_before()) {
          add_outer(ds, q, grad_out, p.scale);
          const double to_value = dot(v, grad_out);
          const double own = dot(q, multiply(bonus, k));
          for (int64_t d = 0; d < dk; ++d) {
            dq[d] += bonus[d] * k[d] * to_value;
            grad_k[d] += p.scale * q[d] * bonus[d] * to_value;
            grad_bonus[d] += p.scale * q[d] * k[d] * to_value;
          }
          for (int64_t e = 0; e < dv; ++e) grad_v[e] += p.scale * own * grad_out[e];
        }
        for (double& value : dq) value *= p.scale;
        in.write(g.q, t, dq);
        in.write(g.k, t, grad_k);
        in.write(g.v, t, grad_v);
        double sum = 0;
        for (int64_t d = 0; d < dk; ++d) {
          grad_decay[d] *= std::exp(log_decay[d]);
          sum += grad_decay[d];
        }
        if (p.decay == Decay::kChannel) in.write(g.log_decay, t, grad_decay);
        if (p.decay == Decay::kToken) in.write(g.log_decay, t, Row{sum});
        grad_head_decay += sum;
      }
      in.write_state(g.initial_state, ds);
    }
    if (p.decay == Decay::kHead && g.log_decay) {
      store_element(g.log_decay.data, g.log_decay.dtype, h * g.log_decay.h, grad_head_decay);
    }
    if (g.bonus) {
      for (int64_t d = 0; d < dk; ++d) {
        store_element(g.bonus.data, g.bonus.dtype, h * g.bonus.h + d, grad_bonus[d]);
      }
    }
  }
  return HEED_OK;
}

}  // namespace heed::kernel
