// learn_reference: the recurrence of learn.h, token by token in float64. A bias is one more row of
// the memory, whose key and query are 1.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernel/learn/problem.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel {
namespace {

using Row = std::vector<double>;

double at(const Strided& x, int64_t b, int64_t t, int64_t h, int64_t i) {
  return load_element(x.data, x.dtype, b * x.b + t * x.t + h * x.h + i);
}

// dz for one token, from the memory's answer z and the target.
Row inner_gradient(const LearnProblem& s, int64_t h, const Row& z, const Row& target) {
  const auto n = static_cast<double>(s.dv);
  Row dz(z.size());
  if (!s.norm) {
    for (size_t i = 0; i < z.size(); ++i) dz[i] = 2 * (z[i] - target[i]);
    return dz;
  }
  double mean = 0, variance = 0, sum = 0, along = 0;
  for (double x : z) mean += x / n;
  for (double x : z) variance += (x - mean) * (x - mean) / n;
  const double deviation = std::sqrt(variance + s.eps);
  Row x(z.size()), u(z.size());
  for (size_t i = 0; i < z.size(); ++i) {
    const double w = at(s.in.norm_weight, 0, 0, h, static_cast<int64_t>(i));
    x[i] = (z[i] - mean) / deviation;
    u[i] = (w * x[i] + at(s.in.norm_bias, 0, 0, h, static_cast<int64_t>(i)) - target[i]) * w;
    sum += u[i];
    along += u[i] * x[i];
  }
  for (size_t i = 0; i < z.size(); ++i) dz[i] = (u[i] - sum / n - x[i] * along / n) / deviation;
  return dz;
}

struct Memory {
  int64_t rows, columns;
  Row values;

  Memory(const LearnProblem& s) : rows(s.rows()), columns(s.dv) {
    values.assign(static_cast<size_t>(rows * columns), 0.0);
  }
  double& operator()(int64_t r, int64_t c) { return values[static_cast<size_t>(r * columns + c)]; }
  Row read(const Row& q) {
    Row out(static_cast<size_t>(columns), 0.0);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        out[static_cast<size_t>(c)] += q[static_cast<size_t>(r)] * (*this)(r, c);
      }
    }
    return out;
  }
  void load(const Strided& x, const Strided& bias, int64_t n, int64_t h, int64_t dk) {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; x && r < dk; ++r) {
        (*this)(r, c) = load_element(x.data, x.dtype, n * x.b + h * x.t + r * x.h + c);
      }
      if (bias) (*this)(dk, c) = load_element(bias.data, bias.dtype, n * bias.b + h * bias.t + c);
    }
  }
  // Without a bias the memory has no row of it.
  void store(const Strided& x, const Strided& bias, int64_t n, int64_t h, int64_t dk) {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; x && r < dk; ++r) {
        store_element(x.data, x.dtype, n * x.b + h * x.t + r * x.h + c, (*this)(r, c));
      }
      if (!bias) continue;
      const double value = rows > dk ? (*this)(dk, c) : 0;
      store_element(bias.data, bias.dtype, n * bias.b + h * bias.t + c, value);
    }
  }
};

Row row_of(const Strided& x, int64_t b, int64_t t, int64_t h, int64_t n, double scale, bool bias) {
  Row row;
  for (int64_t i = 0; i < n; ++i) row.push_back(scale * at(x, b, t, h, i));
  if (bias) row.push_back(1);
  return row;
}

void one_head(const LearnProblem& s, int64_t n, int64_t h) {
  Memory m(s), start(s), momentum(s);
  m.load(s.in.initial_state, s.in.initial_bias, n, h, s.dk);
  momentum.load(s.in.initial_momentum, Strided(), n, h, s.dk);
  Memory running = m;  // without the gain
  int64_t position = s.position(n);
  if (position > 0) {
    start = m;
    running.load(s.in.initial_running, s.in.initial_running_bias, n, h, s.dk);
  }
  const auto span = s.span(n);
  const Strided none;
  for (int64_t i = 0; i < span.length; ++i) {
    const int64_t t = span.begin + i;
    if (position == 0) start = running = m;
    position = (position + 1) % s.chunk;
    const auto gate = [&](const Strided& x, double missing) {
      return x ? at(x, span.b, t, h, 0) : missing;
    };
    const double alpha = gate(s.in.alpha, 0), eta = gate(s.in.eta, 0), theta = gate(s.in.theta, 1);
    const double gain = gate(s.in.gain, 1);
    const Row k = row_of(s.in.k, span.b, t, h, s.dk, 1, s.bias);
    const Row q = row_of(s.in.q, span.b, t, h, s.dk, s.scale, s.bias);
    const Row dz =
        inner_gradient(s, h, start.read(k), row_of(s.in.v, span.b, t, h, s.dv, 1, false));
    for (int64_t r = 0; r < m.rows; ++r) {
      for (int64_t c = 0; c < m.columns; ++c) {
        momentum(r, c) =
            eta * momentum(r, c) - theta * k[static_cast<size_t>(r)] * dz[static_cast<size_t>(c)];
        running(r, c) = (1 - alpha) * running(r, c) + momentum(r, c);
        m(r, c) = s.in.gain ? start(r, c) + gain * (running(r, c) - start(r, c)) : running(r, c);
      }
    }
    const Row out = m.read(q);
    for (int64_t c = 0; c < m.columns; ++c) {
      store_element(s.in.out.data, s.in.out.dtype,
                    span.b * s.in.out.b + t * s.in.out.t + h * s.in.out.h + c,
                    out[static_cast<size_t>(c)]);
    }
  }
  const bool inside = s.open && position > 0;
  (inside ? start : m).store(s.in.final_state, s.in.final_bias, n, h, s.dk);
  (inside ? running : m).store(s.in.final_running, s.in.final_running_bias, n, h, s.dk);
  if (s.in.final_position) {
    store_element(s.in.final_position.data, s.in.final_position.dtype, n,
                  s.open ? static_cast<double>(position) : 0);
  }
  if (!s.momentum) momentum = Memory(s);
  momentum.store(s.in.final_momentum, none, n, h, s.dk);
}

}  // namespace

heed_status learn_reference(const LearnCall& call, heed_message* message) {
  LearnProblem s;
  const heed_status status = check_learn(call, HEED_FORWARD, CallDtypes::kReference, &s, message);
  if (status != HEED_OK) return status;
  for (int64_t n = 0; n < s.sequences; ++n) {
    for (int64_t h = 0; h < s.heads; ++h) one_head(s, n, h);
  }
  return HEED_OK;
}

}  // namespace heed::kernel
