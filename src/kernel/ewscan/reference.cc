// The three scans token by token in double precision, and their adjoints: every state is kept, one
// loop a line of the equations.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernel/ewscan/ewscan.h"

namespace heed::kernel {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Adds to an element of a gradient that may not be wanted.
void add(const heed_view& view, double value, int64_t i = 0, int64_t j = 0, int64_t k = 0,
         int64_t l = 0) {
  if (view.data != nullptr) store(view, load(view, i, j, k, l) + value, i, j, k, l);
}

void clear(const heed_view& view) {
  int64_t count = view.data == nullptr ? 0 : 1;
  for (int i = 0; i < view.rank; ++i) count *= view.sizes[i];
  for (int64_t i = 0; i < count; ++i) store_element(view.data, view.dtype, i, 0);
}

template <class C>
void clear_gradients(const CallFields& fields, const C& call) {
  const heed_view* views = call_grads(fields, &call);
  for (size_t i = 0; i < fields.tensors.size(); ++i) {
    if (is_input(fields.tensors[i].role)) clear(views[i]);
  }
}

double incoming(const heed_view& view, int64_t i, int64_t j = 0, int64_t k = 0, int64_t l = 0) {
  return view.data == nullptr ? 0 : load(view, i, j, k, l);
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A number, real or complex, of a view with the channels last (pairs: one dimension more).
struct Number {
  double re = 0, im = 0;
};
Number times(Number a, Number b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
Number conj_times(Number a, Number b) { return times({a.re, -a.im}, b); }

Number number(const heed_view& v, bool pair, int64_t i, int64_t j, int64_t k) {
  if (v.data == nullptr) return {};
  if (!pair) return {load(v, i, j, k), 0};
  return {load(v, i, j, k, 0), load(v, i, j, k, 1)};
}
// [N,C] or [N,C,2].
Number state_number(const heed_view& v, bool pair, int64_t n, int64_t c) {
  if (v.data == nullptr) return {};
  return pair ? Number{load(v, n, c, 0), load(v, n, c, 1)} : Number{load(v, n, c), 0};
}

}  // namespace

heed_status ewscan_reference(const EwscanCall& call, int32_t pass, heed_message* message) {
  CallSizes size;
  const auto status = check_ewscan(call, pass, CallDtypes::kReference, &size, message);
  if (status != HEED_OK) return status;
  const auto& x = call.in;
  const auto& g = call.grad;
  const bool pair = x.x.rank == 4, turned = given(x.turn), back = pass == HEED_BACKWARD;
  if (back) clear_gradients(kEwscan, call);
  for (int64_t n = 0; n < size["N"]; ++n) {
    const CallSpan s = call_span(call.head, size["T"], n);
    for (int64_t c = 0; c < size["C"]; ++c) {
      std::vector<Number> h(s.length + 1), turn(s.length, Number{1, 0});
      std::vector<double> decay(s.length);
      h[0] = state_number(x.initial_state, pair, n, c);
      for (int64_t t = 0; t < s.length; ++t) {
        const int64_t at = s.begin + t;
        decay[t] =
            std::exp(x.log_decay.rank == 1 ? load(x.log_decay, c) : load(x.log_decay, s.b, at, c));
        if (turned) {
          turn[t] = x.turn.rank == 2 ? Number{load(x.turn, c, 0), load(x.turn, c, 1)}
                                     : number(x.turn, true, s.b, at, c);
        }
        const Number r = times(turn[t], h[t]), in = number(x.x, pair, s.b, at, c);
        h[t + 1] = decay[t] == 0 ? in : Number{decay[t] * r.re + in.re, decay[t] * r.im + in.im};
        if (back) continue;
        store(x.out, h[t + 1].re, s.b, at, c);
        if (pair) store(x.out, h[t + 1].im, s.b, at, c, 1);
      }
      if (!back && x.final_state.data != nullptr) {
        store(x.final_state, h[s.length].re, n, c);
        if (pair) store(x.final_state, h[s.length].im, n, c, 1);
      }
      if (!back) continue;
      Number dh = state_number(g.final_state, pair, n, c);
      for (int64_t t = s.length - 1; t >= 0; --t) {
        const int64_t at = s.begin + t;
        const Number go = number(g.out, pair, s.b, at, c);
        dh = {dh.re + go.re, dh.im + go.im};
        add(g.x, dh.re, s.b, at, c);
        if (pair) add(g.x, dh.im, s.b, at, c, 1);
        if (decay[t] > 0) {
          const Number r = times(turn[t], h[t]);
          const double dl = decay[t] * (dh.re * r.re + dh.im * r.im);
          x.log_decay.rank == 1 ? add(g.log_decay, dl, c) : add(g.log_decay, dl, s.b, at, c);
          const Number dt = conj_times(h[t], dh);
          const bool one = x.turn.rank == 2;
          add(g.turn, decay[t] * dt.re, one ? c : s.b, one ? 0 : at, c, 0);
          add(g.turn, decay[t] * dt.im, one ? c : s.b, one ? 1 : at, c, 1);
        }
        const Number back_turned = conj_times(turn[t], dh);
        dh = {decay[t] * back_turned.re, decay[t] * back_turned.im};
      }
      add(g.initial_state, dh.re, n, c);
      if (pair) add(g.initial_state, dh.im, n, c, 1);
    }
  }
  return HEED_OK;
}

namespace {

// One channel of one sequence.
struct SelectiveChannel {
  const SelectiveCall& call;
  CallSpan s;
  int64_t n, c, group, states;

  double raw(int64_t at) const {
    return load(call.in.dt, s.b, at, c) + (given(call.in.dt_bias) ? load(call.in.dt_bias, c) : 0);
  }
  double step(int64_t at) const { return call.options.dt_softplus ? softplus(raw(at)) : raw(at); }
  double skip() const { return given(call.in.D) ? load(call.in.D, c) : 0; }

  // h[t + 1][k] after token t.
  std::vector<double> states_of() const {
    const auto& x = call.in;
    std::vector<double> h((s.length + 1) * states);
    for (int64_t k = 0; k < states && given(x.initial_state); ++k) {
      h[k] = load(x.initial_state, n, c, k);
    }
    for (int64_t t = 0; t < s.length; ++t) {
      const int64_t at = s.begin + t;
      const double d = step(at), in = d * load(x.x, s.b, at, c);
      for (int64_t k = 0; k < states; ++k) {
        h[(t + 1) * states + k] =
            std::exp(d * load(x.A, c, k)) * h[t * states + k] + in * load(x.B, s.b, at, group, k);
      }
    }
    return h;
  }
  double read(const std::vector<double>& h, int64_t t) const {
    const int64_t at = s.begin + t;
    double y = skip() * load(call.in.x, s.b, at, c);
    for (int64_t k = 0; k < states; ++k) {
      y += h[(t + 1) * states + k] * load(call.in.C, s.b, at, group, k);
    }
    return y;
  }

  void forward() const {
    const auto& x = call.in;
    const std::vector<double> h = states_of();
    for (int64_t t = 0; t < s.length; ++t) {
      const double z = given(x.z) ? load(x.z, s.b, s.begin + t, c) : 0;
      store(x.out, read(h, t) * (given(x.z) ? z * sigmoid(z) : 1), s.b, s.begin + t, c);
    }
    for (int64_t k = 0; k < states && x.final_state.data != nullptr; ++k) {
      store(x.final_state, h[s.length * states + k], n, c, k);
    }
  }

  void backward() const {
    const auto& x = call.in;
    const auto& g = call.grad;
    const std::vector<double> h = states_of();
    std::vector<double> dh(states);
    for (int64_t k = 0; k < states; ++k) dh[k] = incoming(g.final_state, n, c, k);
    for (int64_t t = s.length - 1; t >= 0; --t) {
      const int64_t at = s.begin + t;
      double dy = incoming(g.out, s.b, at, c);
      if (given(x.z)) {
        const double z = load(x.z, s.b, at, c), sig = sigmoid(z);
        add(g.z, dy * read(h, t) * sig * (1 + z * (1 - sig)), s.b, at, c);
        dy *= z * sig;
      }
      const double value = load(x.x, s.b, at, c), d = step(at);
      add(g.D, dy * value, c);
      double dx = dy * skip(), dd = 0;
      for (int64_t k = 0; k < states; ++k) {
        const double before = h[t * states + k], A = load(x.A, c, k), a = std::exp(d * A);
        dh[k] += dy * load(x.C, s.b, at, group, k);
        add(g.C, dy * h[(t + 1) * states + k], s.b, at, group, k);
        add(g.B, dh[k] * d * value, s.b, at, group, k);
        const double write = dh[k] * load(x.B, s.b, at, group, k);
        dx += write * d;
        dd += write * value + dh[k] * a * before * A;
        add(g.A, dh[k] * a * before * d, c, k);
        dh[k] *= a;
      }
      add(g.x, dx, s.b, at, c);
      if (call.options.dt_softplus) dd *= sigmoid(raw(at));
      add(g.dt, dd, s.b, at, c);
      add(g.dt_bias, dd, c);
    }
    for (int64_t k = 0; k < states; ++k) add(g.initial_state, dh[k], n, c, k);
  }
};

}  // namespace

heed_status selective_scan_reference(const SelectiveCall& call, int32_t pass,
                                     heed_message* message) {
  CallSizes size;
  const auto status = check_selective_scan(call, pass, CallDtypes::kReference, &size, message);
  if (status != HEED_OK) return status;
  if (pass == HEED_BACKWARD) clear_gradients(kSelectiveScan, call);
  for (int64_t n = 0; n < size["N"]; ++n) {
    for (int64_t c = 0; c < size["C"]; ++c) {
      const SelectiveChannel one = {call, call_span(call.head, size["T"], n), n,
                                    c,    c / (size["C"] / size["G"]),        size["K"]};
      pass == HEED_BACKWARD ? one.backward() : one.forward();
    }
  }
  return HEED_OK;
}

namespace {

// One head of one sequence; sums hold exp(logit) v and exp(logit) relative to m.
struct LseHead {
  const LseCall& call;
  CallSpan s;
  int64_t n, h, width;

  double decay(int64_t t) const {
    const heed_view& d = call.in.log_decay;
    if (!given(d)) return 0;
    return d.rank == 1 ? load(d, h) : load(d, s.b, s.begin + t, h);
  }
  double score(int64_t t) const { return load(call.in.score, s.b, s.begin + t, h); }

  struct State {
    double m = -kInf, w = 0;
    std::vector<double> u;
  };
  State initial() const {
    State x;
    x.u.resize(width);
    if (!given(call.in.initial_m)) return x;
    x.m = load(call.in.initial_m, n, h);
    x.w = load(call.in.initial_w, n, h);
    for (int64_t i = 0; i < width; ++i) x.u[i] = load(call.in.initial_u, n, h, i);
    return x;
  }
  static double shrink(double x, double m) { return x == -kInf ? 0 : std::exp(x - m); }
  void advance(State& x, int64_t t) const {
    const double before = x.m + decay(t), m = std::max(before, score(t));
    const double e = shrink(before, m), f = shrink(score(t), m);
    for (int64_t i = 0; i < width; ++i) {
      x.u[i] = e * x.u[i] + f * load(call.in.v, s.b, s.begin + t, h, i);
    }
    x.w = e * x.w + f;
    x.m = m;
  }

  void forward() const {
    State x = initial();
    for (int64_t t = 0; t < s.length; ++t) {
      advance(x, t);
      for (int64_t i = 0; i < width; ++i) {
        store(call.in.out, x.w == 0 ? 0 : x.u[i] / x.w, s.b, s.begin + t, h, i);
      }
    }
    if (call.in.final_m.data == nullptr) return;
    store(call.in.final_m, x.m, n, h);
    store(call.in.final_w, x.w, n, h);
    for (int64_t i = 0; i < width; ++i) store(call.in.final_u, x.u[i], n, h, i);
  }

  // The adjoint of advance(), state by state.
  void backward() const {
    const auto& g = call.grad;
    std::vector<State> states = {initial()};
    for (int64_t t = 0; t < s.length; ++t) {
      states.push_back(states.back());
      advance(states.back(), t);
    }
    double dm = incoming(g.final_m, n, h), dw = incoming(g.final_w, n, h);
    std::vector<double> du(width);
    for (int64_t i = 0; i < width; ++i) du[i] = incoming(g.final_u, n, h, i);
    for (int64_t t = s.length - 1; t >= 0; --t) {
      const State &x = states[t], &y = states[t + 1];
      for (int64_t i = 0; i < width && y.w != 0; ++i) {
        const double go = incoming(g.out, s.b, s.begin + t, h, i);
        du[i] += go / y.w;
        dw -= go * y.u[i] / (y.w * y.w);
      }
      const double before = x.m + decay(t), e = shrink(before, y.m), f = shrink(score(t), y.m);
      double de = dw * x.w, df = dw;
      for (int64_t i = 0; i < width; ++i) {
        const double v = load(call.in.v, s.b, s.begin + t, h, i);
        de += du[i] * x.u[i];
        df += du[i] * v;
        add(g.v, du[i] * f, s.b, s.begin + t, h, i);
        du[i] *= e;
      }
      dw *= e;
      // e = exp(before - m), f = exp(score - m), and m is the larger of the two.
      dm -= de * e + df * f;
      const bool keeps = before > score(t);
      add(g.score, df * f + (keeps ? 0 : dm), s.b, s.begin + t, h);
      const double dbefore = de * e + (keeps ? dm : 0);
      if (decay(t) != -kInf) {
        const heed_view& d = call.in.log_decay;
        d.rank == 1 ? add(g.log_decay, dbefore, h) : add(g.log_decay, dbefore, s.b, s.begin + t, h);
      }
      dm = dbefore;
    }
    add(g.initial_m, dm, n, h);
    add(g.initial_w, dw, n, h);
    for (int64_t i = 0; i < width; ++i) add(g.initial_u, du[i], n, h, i);
  }
};

}  // namespace

heed_status lse_scan_reference(const LseCall& call, int32_t pass, heed_message* message) {
  CallSizes size;
  const auto status = check_lse_scan(call, pass, CallDtypes::kReference, &size, message);
  if (status != HEED_OK) return status;
  if (pass == HEED_BACKWARD) clear_gradients(kLseScan, call);
  for (int64_t n = 0; n < size["N"]; ++n) {
    for (int64_t h = 0; h < size["H"]; ++h) {
      const LseHead one = {call, call_span(call.head, size["T"], n), n, h, size["V"]};
      pass == HEED_BACKWARD ? one.backward() : one.forward();
    }
  }
  return HEED_OK;
}

}  // namespace heed::kernel
