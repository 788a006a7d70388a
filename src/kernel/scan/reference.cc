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

namespace {

void forward(const ScanProblem& p) {
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
}

// The adjoint of one token. `ds` is the gradient of the state after it, and becomes that of the
// state before it.
class TokenAdjoint {
 public:
  TokenAdjoint(const Reader& in, const ScanGradProblem& g, int64_t t, const Row& before,
               const Row& after, Row& ds)
      : p_(in.p),
        in_(in),
        g_(g),
        t_(t),
        before_(before),
        after_(after),
        ds_(ds),
        q_(in.row(p_.q, t, p_.dk)),
        k_(in.row(p_.k, t, p_.dk)),
        v_(in.row(p_.v, t, p_.dv)),
        grad_out_(in.row(g.grad_out, t, p_.dv)),
        log_decay_(in.log_decay(t)),
        grad_decay_(p_.dk, 0.0) {}

  // Writes the token's gradients; adds to that of the bonus. Returns that of the whole log decay.
  double run(const Row& bonus, Row& grad_bonus) {
    Row dq = times_transposed(grad_out_, p_.read_before() ? before_ : after_, p_.dk);
    if (!p_.read_before()) add_outer(ds_, q_, grad_out_, p_.scale);
    if (p_.correction == Correction::kGeneral) {
      general();
    } else if (p_.correction == Correction::kDelta) {
      delta();
    } else {
      grad_k_ = times_transposed(v_, ds_, p_.dk);
      grad_v_ = times(k_, ds_, p_.dv);
      decay();
    }
    if (p_.read_before()) own(bonus, dq, grad_bonus);
    for (double& value : dq) value *= p_.scale;
    in_.write(g_.q, t_, dq);
    in_.write(g_.k, t_, grad_k_);
    in_.write(g_.v, t_, grad_v_);
    double sum = 0;
    for (int64_t d = 0; d < p_.dk; ++d) {
      grad_decay_[d] *= std::exp(log_decay_[d]);
      sum += grad_decay_[d];
    }
    if (p_.decay == Decay::kChannel) in_.write(g_.log_decay, t_, grad_decay_);
    if (p_.decay == Decay::kToken) in_.write(g_.log_decay, t_, Row{sum});
    return sum;
  }

 private:
  // Through S = diag(a) S_{t-1}: what the decay gets, and the state.
  void decay() {
    for (int64_t i = 0; i < p_.dk * p_.dv; ++i) grad_decay_[i / p_.dv] += ds_[i] * before_[i];
    decay_rows(ds_, log_decay_);
  }

  void general() {
    const Row r = in_.row(p_.r, t_, p_.dk), pt = in_.row(p_.p, t_, p_.dk);
    grad_k_ = times_transposed(v_, ds_, p_.dk);
    grad_v_ = times(k_, ds_, p_.dv);
    in_.write(g_.p, t_, times_transposed(times(r, before_, p_.dv), ds_, p_.dk));
    const Row grad_y = times(pt, ds_, p_.dv);
    in_.write(g_.r, t_, times_transposed(grad_y, before_, p_.dk));
    decay();
    add_outer(ds_, r, grad_y);
  }

  void delta() {
    Row decayed = before_;
    decay_rows(decayed, log_decay_);
    const double beta = in_.row(p_.beta, t_, 1)[0];
    const Row y = times(k_, decayed, p_.dv), grad_write = times(k_, ds_, p_.dv);
    Row u(p_.dv), write(p_.dv), grad_u(p_.dv);
    for (int64_t e = 0; e < p_.dv; ++e) {
      u[e] = v_[e] - y[e];
      write[e] = beta * u[e];
      grad_u[e] = beta * grad_write[e];
    }
    in_.write(g_.beta, t_, Row{dot(grad_write, u)});
    grad_v_ = grad_u;
    grad_k_ = times_transposed(write, ds_, p_.dk);
    const Row through_read = times_transposed(grad_u, decayed, p_.dk);
    for (int64_t d = 0; d < p_.dk; ++d) grad_k_[d] -= through_read[d];
    add_outer(ds_, k_, grad_u, -1);
    decay();
  }

  // Read before the write: the state's part, and the token's own value by the bonus.
  void own(const Row& bonus, Row& dq, Row& grad_bonus) {
    add_outer(ds_, q_, grad_out_, p_.scale);
    const double to_value = dot(v_, grad_out_);
    const double own = dot(q_, multiply(bonus, k_));
    for (int64_t d = 0; d < p_.dk; ++d) {
      dq[d] += bonus[d] * k_[d] * to_value;
      grad_k_[d] += p_.scale * q_[d] * bonus[d] * to_value;
      grad_bonus[d] += p_.scale * q_[d] * k_[d] * to_value;
    }
    for (int64_t e = 0; e < p_.dv; ++e) grad_v_[e] += p_.scale * own * grad_out_[e];
  }

  const ScanProblem& p_;
  const Reader& in_;
  const ScanGradProblem& g_;
  const int64_t t_;
  const Row &before_, &after_;
  Row& ds_;
  const Row q_, k_, v_, grad_out_, log_decay_;
  Row grad_k_, grad_v_, grad_decay_;
};

void backward(const ScanProblem& p, const ScanGradProblem& g) {
  for (int64_t h = 0; h < p.heads; ++h) {
    double grad_head_decay = 0;
    Row grad_bonus(p.dk, 0.0);
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
        grad_head_decay +=
            TokenAdjoint(in, g, t, states[t], states[t + 1], ds).run(bonus, grad_bonus);
      }
      in.write_state(g.initial_state, ds);
    }
    if (p.decay == Decay::kHead && g.log_decay) {
      store_element(g.log_decay.data, g.log_decay.dtype, h * g.log_decay.h, grad_head_decay);
    }
    if (g.bonus) {
      for (int64_t d = 0; d < p.dk; ++d) {
        store_element(g.bonus.data, g.bonus.dtype, h * g.bonus.h + d, grad_bonus[d]);
      }
    }
  }
}

}  // namespace

heed_status scan_reference(const ScanCall& call, int32_t pass, heed_message* message) {
  CallSizes sizes;
  const heed_status status =
      check_call(kScan, &call, pass, CallDtypes::kReference, &sizes, message);
  if (status != HEED_OK) return status;
  const ScanProblem p(call);
  if (pass == HEED_BACKWARD) {
    backward(p, ScanGradProblem(call));
  } else {
    forward(p);
  }
  return HEED_OK;
}

}  // namespace heed::kernel
