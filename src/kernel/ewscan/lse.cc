// lse_scan: one sequence and head a task. The sums u and w are held in double precision while they
// run, for thousands of terms are added to them; one exponential a token. Backward is the same scan
// from the end, of the gradients with -lse as scores: R_j = sum_{t>=j} exp(decays - lse_t) dout_t.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernel/parallel.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/ewscan/lse.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/ewscan/rows-inl.h"

#ifndef HEED_KERNEL_EWSCAN_LSE_H_
#define HEED_KERNEL_EWSCAN_LSE_H_
namespace heed::kernel {
namespace {

struct LseProblem {
  const LseCall& call;
  int64_t time, heads, width, sequences;

  LseProblem(const LseCall& call, const CallSizes& size)
      : call(call), time(size["T"]), heads(size["H"]), width(size["V"]), sequences(size["N"]) {}

  float decay(const CallSpan& s, int64_t h, int64_t t) const {
    const heed_view& d = call.in.log_decay;
    if (!given(d)) return 0;
    return *reinterpret_cast<const float*>(d.rank == 1 ? at(d, h) : at(d, s.b, s.begin + t, h));
  }
  float score(const CallSpan& s, int64_t h, int64_t t) const {
    return *reinterpret_cast<const float*>(at(call.in.score, s.b, s.begin + t, h));
  }
};

constexpr double kNone = -std::numeric_limits<double>::infinity();

// The scalars of a merge of (m, ...) with a term of logit s: what the two are multiplied by.
struct Merge {
  double m, old, term;

  Merge(double before, double s) : m(std::max(before, s)) {
    old = before == kNone ? 0 : before == m ? 1 : std::exp(before - m);
    term = s == kNone ? 0 : s == m ? 1 : std::exp(s - m);
  }
};

}  // namespace
}  // namespace heed::kernel
#endif

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {
namespace {

using DD = hn::ScalableTag<double>;
using VD = hn::Vec<DD>;
using DHalf = hn::Rebind<float, DD>;

HWY_INLINE VD widen(const float* p) { return hn::PromoteTo(DD(), hn::LoadU(DHalf(), p)); }

// u = old u + term v, over `n` padded to 16; returns u . with where there is one.
HWY_INLINE double merge_row(int64_t n, double old, double term, const float* v, double* u,
                            const float* with) {
  const DD d;
  const VD a = hn::Set(d, old), b = hn::Set(d, term);
  VD dot = hn::Zero(d);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    const VD x = hn::MulAdd(a, hn::LoadU(d, u + i), hn::Mul(b, widen(v + i)));
    hn::StoreU(x, d, u + i);
    if (with != nullptr) dot = hn::MulAdd(x, widen(with + i), dot);
  }
  return with == nullptr ? 0 : hn::GetLane(hn::SumOfLanes(d, dot));
}
HWY_INLINE double dot_row(int64_t n, const double* u, const float* v) {
  const DD d;
  VD dot = hn::Zero(d);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    dot = hn::MulAdd(hn::LoadU(d, u + i), widen(v + i), dot);
  }
  return hn::GetLane(hn::SumOfLanes(d, dot));
}
// to = factor u.
HWY_INLINE void scale_row(int64_t n, double factor, const double* u, float* to) {
  const DD d;
  const VD a = hn::Set(d, factor);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    hn::StoreU(hn::DemoteTo(DHalf(), hn::Mul(a, hn::LoadU(d, u + i))), DHalf(), to + i);
  }
}

struct LseState {
  double m = kNone, w = 0;
  double* u;
};

LseState load_state(const LseProblem& p, int64_t n, int64_t h, int64_t padded, double* u) {
  LseState x;
  x.u = u;
  std::fill_n(u, padded, 0.0);
  const auto& in = p.call.in;
  if (!given(in.initial_m)) return x;
  x.m = load(in.initial_m, n, h);
  x.w = load(in.initial_w, n, h);
  for (int64_t i = 0; i < p.width; ++i) u[i] = load(in.initial_u, n, h, i);
  return x;
}

double* take_doubles(Arena& arena, int64_t n) {
  return reinterpret_cast<double*>(arena.take(2 * n));
}

int64_t forward_task(const LseProblem& p, int64_t n, int64_t h, float* scratch) {
  const int64_t padded = pad_to(p.width, 16);
  Arena arena(scratch);
  float *v = arena.take(kSegment * padded), *out = arena.take(kSegment * padded);
  double* u = take_doubles(arena, padded);
  if (scratch == nullptr) return arena.used();
  const auto& in = p.call.in;
  const CallSpan s = call_span(p.call.head, p.time, n);
  LseState x = load_state(p, n, h, padded, u);
  for (int64_t t = 0; t < s.length; t += kSegment) {
    const int64_t l = std::min(kSegment, s.length - t);
    load_tokens(in.v, s.b, s.begin + t, l, h, p.width, v, padded);
    for (int64_t i = 0; i < l; ++i) {
      const Merge merge(x.m + p.decay(s, h, t + i), p.score(s, h, t + i));
      merge_row(padded, merge.old, merge.term, v + i * padded, u, nullptr);
      x.w = merge.old * x.w + merge.term;
      x.m = merge.m;
      scale_row(padded, x.w == 0 ? 0 : 1 / x.w, u, out + i * padded);
    }
    store_tokens(out, padded, in.out, s.b, s.begin + t, l, h, p.width);
  }
  if (in.final_m.data == nullptr) return arena.used();
  store(in.final_m, x.m, n, h);
  store(in.final_w, x.w, n, h);
  for (int64_t i = 0; i < p.width; ++i) store(in.final_u, u[i], n, h, i);
  return arena.used();
}

// Scratch of a task of the backward pass.
struct LseBack {
  int64_t padded;
  float *v, *go, *dv;
  double *u, *lse, *dot, *sum;  // lse_t and out_t . dout_t of every token; R

  LseBack(const LseProblem& p, Arena& arena) : padded(pad_to(p.width, 16)) {
    v = arena.take(kSegment * padded);
    go = arena.take(kSegment * padded);
    dv = arena.take(kSegment * padded);
    u = take_doubles(arena, padded);
    sum = take_doubles(arena, padded);
    lse = take_doubles(arena, p.time + 1);
    dot = take_doubles(arena, p.time + 1);
  }
};

void load_segment(const LseProblem& p, const LseBack& b, const CallSpan& s, int64_t h, int64_t t,
                  int64_t l) {
  load_tokens(p.call.in.v, s.b, s.begin + t, l, h, p.width, b.v, b.padded);
  if (p.call.grad.out.data == nullptr) {
    std::fill_n(b.go, kSegment * b.padded, 0.0f);
  } else {
    load_tokens(p.call.grad.out, s.b, s.begin + t, l, h, p.width, b.go, b.padded);
  }
}

// The scan once more: lse and out . dout of every token; `largest` is the token whose score is m at
// the end, -1 where it is the initial state's.
LseState scan_again(const LseProblem& p, const LseBack& b, const CallSpan& s, int64_t n, int64_t h,
                    int64_t* largest) {
  LseState x = load_state(p, n, h, b.padded, b.u);
  *largest = -1;
  for (int64_t t = 0; t < s.length; t += kSegment) {
    const int64_t l = std::min(kSegment, s.length - t);
    load_segment(p, b, s, h, t, l);
    for (int64_t i = 0; i < l; ++i) {
      const double before = x.m + p.decay(s, h, t + i), score = p.score(s, h, t + i);
      const Merge merge(before, score);
      if (score >= before) *largest = t + i;
      const double dot =
          merge_row(b.padded, merge.old, merge.term, b.v + i * b.padded, b.u, b.go + i * b.padded);
      x.w = merge.old * x.w + merge.term;
      x.m = merge.m;
      b.lse[t + i] = x.w > 0 ? x.m + std::log(x.w) : kNone;
      b.dot[t + i] = x.w > 0 ? dot / x.w : 0;
    }
  }
  return x;
}

// What flows back: R as sum exp(reference), r likewise.
struct Reverse {
  double reference = kNone, dot = 0;

  // Adds `term` exp(-lse): returns the factors of the old and the new part.
  Merge add(double lse, double term) {
    const Merge merge(reference, -lse);
    dot = merge.old * dot + merge.term * term;
    reference = merge.m;
    return merge;
  }
};

// Head h of sequence n. dH: where the gradient of a log_decay [H] gathers.
void backward_sequence(const LseProblem& p, const LseBack& b, int64_t n, int64_t h, double* dH) {
  const auto& in = p.call.in;
  const auto& g = p.call.grad;
  const CallSpan s = call_span(p.call.head, p.time, n);
  int64_t largest = -1;
  const LseState last = scan_again(p, b, s, n, h, &largest);
  // The final state is one more reader, of lse m and gradient (u, w).
  Reverse r;
  std::fill_n(b.sum, b.padded, 0.0);
  double invariant = 0;  // the gradient of a common shift of all logits, m aside
  if (last.m != kNone && (g.final_u.data != nullptr || g.final_w.data != nullptr)) {
    const double dw = g.final_w.data == nullptr ? 0 : load(g.final_w, n, h);
    r.add(last.m, -dw);
    for (int64_t i = 0; i < p.width && g.final_u.data != nullptr; ++i) {
      b.sum[i] = load(g.final_u, n, h, i);
      invariant += b.sum[i] * b.u[i];
    }
    invariant += dw * last.w;
  }
  const double dm = (g.final_m.data == nullptr ? 0 : load(g.final_m, n, h)) - invariant;
  double later = 0;  // sum of the gradients of the scores from here on
  for (int64_t t = (s.length + kSegment - 1) / kSegment * kSegment - kSegment; t >= 0;
       t -= kSegment) {
    const int64_t l = std::min(kSegment, s.length - t);
    load_segment(p, b, s, h, t, l);
    for (int64_t i = l - 1; i >= 0; --i) {
      const int64_t j = t + i;
      const double score = p.score(s, h, j), decay = p.decay(s, h, j);
      if (b.lse[j] != kNone) {
        const Merge merge = r.add(b.lse[j], b.dot[j]);
        merge_row(b.padded, merge.old, merge.term, b.go + i * b.padded, b.sum, nullptr);
      }
      const double weight =
          score == kNone || r.reference == kNone ? 0 : std::exp(score + r.reference);
      scale_row(b.padded, weight, b.sum, b.dv + i * b.padded);
      const double ds = weight * (dot_row(b.padded, b.sum, b.v + i * b.padded) - r.dot);
      later += ds;
      if (g.score.data != nullptr) {
        store(g.score, ds + (j == largest ? dm : 0), s.b, s.begin + j, h);
      }
      const double ddecay =
          decay == static_cast<float>(kNone) ? 0 : invariant - later + (j > largest ? dm : 0);
      if (g.log_decay.data != nullptr && g.log_decay.rank == 3) {
        store(g.log_decay, ddecay, s.b, s.begin + j, h);
      }
      *dH += ddecay;
      r.reference += decay;
    }
    store_tokens(b.dv, b.padded, g.v, s.b, s.begin + t, l, h, p.width);
  }
  if (g.initial_m.data == nullptr && g.initial_u.data == nullptr && g.initial_w.data == nullptr) {
    return;
  }
  const double m = load(in.initial_m, n, h);
  const double weight = m == kNone || r.reference == kNone ? 0 : std::exp(m + r.reference);
  double gradient = largest < 0 && m != kNone ? dm : 0;
  for (int64_t i = 0; i < p.width; ++i) {
    const double du = weight * b.sum[i];
    gradient += du * load(in.initial_u, n, h, i);
    if (g.initial_u.data != nullptr) store(g.initial_u, du, n, h, i);
  }
  gradient -= weight * r.dot * load(in.initial_w, n, h);
  if (g.initial_w.data != nullptr) store(g.initial_w, -weight * r.dot, n, h);
  if (g.initial_m.data != nullptr) store(g.initial_m, gradient, n, h);
}

// Head h of the sequences [first, last).
int64_t backward_task(const LseProblem& p, int64_t h, int64_t first, int64_t last, float* scratch) {
  Arena arena(scratch);
  const LseBack b(p, arena);
  if (scratch == nullptr) return arena.used();
  double dH = 0;
  for (int64_t n = first; n < last; ++n) backward_sequence(p, b, n, h, &dH);
  const heed_view& g = p.call.grad.log_decay;
  if (g.data != nullptr && g.rank == 1) store(g, dH, h);
  return arena.used();
}

}  // namespace
}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(forward_task);
HWY_EXPORT(backward_task);

namespace {

const LseCall& call_of(const void* call) { return *static_cast<const LseCall*>(call); }

Scratch scratch_of(const LseProblem& p, int32_t pass) {
  if (pass != HEED_BACKWARD) return {0, HWY_DYNAMIC_DISPATCH(forward_task)(p, 0, 0, nullptr)};
  return {0, HWY_DYNAMIC_DISPATCH(backward_task)(p, 0, 0, 0, nullptr)};
}

int64_t workspace(const void* c, int32_t pass, int32_t threads) {
  CallSizes size;
  if (check_lse_scan(call_of(c), pass, CallDtypes::kKernel, &size, nullptr) != HEED_OK) return 0;
  return scratch_of(LseProblem(call_of(c), size), pass).bytes(threads);
}

heed_status run(const void* c, int32_t pass, void* workspace, void* /*stream*/,
                const heed_parallel* parallel, heed_message* message) {
  CallSizes size;
  const heed_status status = check_lse_scan(call_of(c), pass, CallDtypes::kKernel, &size, message);
  if (status != HEED_OK) return status;
  const LseProblem p(call_of(c), size);
  const Scratch scratch = scratch_of(p, pass);
  if (pass != HEED_BACKWARD) {
    const auto task = HWY_DYNAMIC_DISPATCH(forward_task);
    parallel_for(parallel, p.sequences * p.heads, [&](int64_t i, int32_t worker) {
      task(p, i / p.heads, i % p.heads, scratch.of(workspace, worker));
    });
    return HEED_OK;
  }
  const auto task = HWY_DYNAMIC_DISPATCH(backward_task);
  const heed_view& d = p.call.in.log_decay;
  const bool shared = given(d) && d.rank == 1;  // a gradient that all sequences add to
  const int64_t runs = shared ? 1 : p.sequences;
  parallel_for(parallel, runs * p.heads, [&](int64_t i, int32_t worker) {
    const int64_t n = i / p.heads;
    task(p, i % p.heads, shared ? 0 : n, shared ? p.sequences : n + 1,
         scratch.of(workspace, worker));
  });
  return HEED_OK;
}

}  // namespace

std::span<const heed_backend> lse_scan_backends() {
  static const heed_backend rows[] = {
      {sizeof(heed_backend), "lse_scan", "cpu", HEED_CPU, 100, nullptr, workspace, nullptr, run}};
  return rows;
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
