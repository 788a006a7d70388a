// ewscan on vectors of channels: a state a channel (two numbers where it is complex) in a register,
// over all tokens. Backward computes the states of a segment again from the one kept at its start.
#include <algorithm>
#include <cmath>

#include "kernel/parallel.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/ewscan/plain.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/ewscan/rows-inl.h"

#ifndef HEED_KERNEL_EWSCAN_PLAIN_H_
#define HEED_KERNEL_EWSCAN_PLAIN_H_
namespace heed::kernel {
namespace {

// A checked call. `kept`: the states at the segments' starts, [segments, numbers, C], or nullptr.
struct PlainProblem {
  const EwscanCall& call;
  int64_t time, channels, sequences;
  bool pair, turned;
  float* kept;
  bool writes = true;  // out and final_state, not only kept

  PlainProblem(const EwscanCall& call, const CallSizes& size)
      : call(call),
        time(size["T"]),
        channels(size["C"]),
        sequences(size["N"]),
        pair(call.in.x.rank == 4),
        turned(given(call.in.turn)),
        kept(static_cast<float*>(call.head.saved)) {}

  int64_t numbers() const { return pair ? 2 : 1; }
};

constexpr int64_t kPlainWidth = 64;  // channels of a task

}  // namespace
}  // namespace heed::kernel
#endif

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {
namespace {

constexpr int64_t kRow = kPlainWidth;

// Rows of a segment, real and imaginary parts apart: part q of token t at rows + (t * 2 + q) *
// kRow.
struct Rows {
  float *x, *turn, *decay, *pairs;  // decay: as hi and lo
  int64_t turn_step, decay_step;    // 0: one row for all tokens

  explicit Rows(Arena& arena) {
    x = arena.take(2 * kSegment * kRow);
    turn = arena.take(2 * kSegment * kRow);
    decay = arena.take(2 * kSegment * kRow);
    pairs = arena.take(2 * kSegment * kRow);
  }
};

// Rows of [B,T,C,2] (or [C,2], length 1) taken apart.
void split_pairs(const char* data, int64_t stride, int32_t dtype, int64_t length, int64_t width,
                 float* pairs, float* to) {
  load_rows(data, stride, dtype, length, 2 * width, 1, nullptr, pairs, 2 * kRow);
  const DF d;
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t i = 0; i < kRow; i += kLanes) {
      VF re, im;
      hn::LoadInterleaved2(d, pairs + t * 2 * kRow + 2 * i, re, im);
      hn::StoreU(re, d, to + t * 2 * kRow + i);
      hn::StoreU(im, d, to + t * 2 * kRow + kRow + i);
    }
  }
}
void join_pairs(const float* from, int64_t length, float* pairs) {
  const DF d;
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t i = 0; i < kRow; i += kLanes) {
      hn::StoreInterleaved2(hn::LoadU(d, from + t * 2 * kRow + i),
                            hn::LoadU(d, from + t * 2 * kRow + kRow + i), d,
                            pairs + t * 2 * kRow + 2 * i);
    }
  }
}

int64_t token_stride(const heed_view& v) { return v.strides[1] * dtype_size(v.dtype); }

// Tokens of x or of a gradient, [B,T,C] or [B,T,C,2], into rows.
void load_numbers(const PlainProblem& p, const heed_view& v, int64_t b, int64_t t, int64_t length,
                  int64_t c, int64_t width, const Rows& r, float* to) {
  if (p.pair) {
    split_pairs(at(v, b, t, c), token_stride(v), v.dtype, length, width, r.pairs, to);
  } else {
    load_tokens(v, b, t, length, c, width, to, 2 * kRow);
  }
}
void store_numbers(const PlainProblem& p, const float* from, const heed_view& v, int64_t b,
                   int64_t t, int64_t length, int64_t c, int64_t width, const Rows& r) {
  if (v.data == nullptr) return;
  if (!p.pair) return store_tokens(from, 2 * kRow, v, b, t, length, c, width);
  join_pairs(from, length, r.pairs);
  store_rows(r.pairs, 2 * kRow, length, 2 * width, at(v, b, t, c), token_stride(v), v.dtype);
}
void load_state_row(const PlainProblem& p, const heed_view& v, int64_t n, int64_t c, int64_t width,
                    const Rows& r, float* to) {
  std::fill_n(to, 2 * kRow, 0.0f);
  if (v.data == nullptr) return;
  if (p.pair) {
    split_pairs(at(v, n, c), 0, HEED_FLOAT32, 1, width, r.pairs, to);
  } else {
    load_rows(at(v, n, c), 0, HEED_FLOAT32, 1, width, 1, nullptr, to, kRow);
  }
}
void store_state_row(const PlainProblem& p, const float* from, const heed_view& v, int64_t n,
                     int64_t c, int64_t width, const Rows& r) {
  if (v.data == nullptr) return;
  if (p.pair) join_pairs(from, 1, r.pairs);
  store_row(p.pair ? r.pairs : from, p.numbers() * width, at(v, n, c), HEED_FLOAT32);
}

// exp of `length` rows of log_decay as two floats.
void split_decays(int64_t length, const float* log_decay, float* to) {
  const DF d;
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t i = 0; i < kRow; i += kLanes) {
      const TwoFloats a = exp_two(hn::LoadU(d, log_decay + t * kRow + i));
      hn::StoreU(a.hi, d, to + t * 2 * kRow + i);
      hn::StoreU(a.lo, d, to + t * 2 * kRow + kRow + i);
    }
  }
}

// Decays and turns of a segment; those without a token dimension once, before the first.
void load_factors(const PlainProblem& p, const CallSpan& s, int64_t t, int64_t length, int64_t c,
                  int64_t width, bool first, Rows& r) {
  const heed_view &decay = p.call.in.log_decay, &turn = p.call.in.turn;
  const bool fixed = decay.rank == 1;
  r.decay_step = fixed ? 0 : 2 * kRow;
  if (!fixed || first) {
    load_rows(fixed ? at(decay, c) : at(decay, s.b, s.begin + t, c),
              fixed ? 0 : token_stride(decay), HEED_FLOAT32, fixed ? 1 : length, width, 1, nullptr,
              r.pairs, kRow);
    split_decays(fixed ? 1 : length, r.pairs, r.decay);
  }
  if (!p.turned) return;
  const bool one = turn.rank == 2;
  r.turn_step = one ? 0 : 2 * kRow;
  if (one && !first) return;
  split_pairs(one ? at(turn, c) : at(turn, s.b, s.begin + t, c), one ? 0 : token_stride(turn),
              HEED_FLOAT32, one ? 1 : length, width, r.pairs, r.turn);
}

struct Pair {
  VF re, im;
};
HWY_INLINE Pair load_pair(const float* row) {
  return {hn::LoadU(DF(), row), hn::LoadU(DF(), row + kRow)};
}
HWY_INLINE void store_pair(Pair x, float* row) {
  hn::StoreU(x.re, DF(), row);
  hn::StoreU(x.im, DF(), row + kRow);
}
HWY_INLINE Pair times(Pair a, Pair b) {
  return {hn::NegMulAdd(a.im, b.im, hn::Mul(a.re, b.re)),
          hn::MulAdd(a.re, b.im, hn::Mul(a.im, b.re))};
}
HWY_INLINE Pair conj_times(Pair a, Pair b) { return times({a.re, hn::Neg(a.im)}, b); }

// Vector i of the channels over a segment: states go to `out`, those before each token to `before`
// where it is given. kParts 1: real.
template <bool kComplex>
void sweep(const Rows& r, bool turned, int64_t length, int64_t i, float* state, float* out,
           float* before) {
  const DF d;
  Pair h = load_pair(state + i);
  for (int64_t t = 0; t < length; ++t) {
    if (before != nullptr) store_pair(h, before + t * 2 * kRow + i);
    const float *x = r.x + t * 2 * kRow + i, *decay = r.decay + t * r.decay_step + i;
    const VF hi = hn::LoadU(d, decay), lo = hn::LoadU(d, decay + kRow);
    if (kComplex && turned) h = times(load_pair(r.turn + t * r.turn_step + i), h);
    h.re = hn::MulAdd(hi, h.re, hn::MulAdd(lo, h.re, hn::LoadU(d, x)));
    if (kComplex) h.im = hn::MulAdd(hi, h.im, hn::MulAdd(lo, h.im, hn::LoadU(d, x + kRow)));
    hn::StoreU(h.re, d, out + t * 2 * kRow + i);
    if (kComplex) hn::StoreU(h.im, d, out + t * 2 * kRow + kRow + i);
  }
  store_pair(h, state + i);
}
void sweep_segment(const PlainProblem& p, const Rows& r, int64_t length, float* state, float* out,
                   float* before) {
  for (int64_t i = 0; i < kRow; i += kLanes) {
    p.pair ? sweep<true>(r, p.turned, length, i, state, out, before)
           : sweep<false>(r, p.turned, length, i, state, out, before);
  }
}

int64_t forward_task(const PlainProblem& p, int64_t n, int64_t c, float* scratch) {
  Arena arena(scratch);
  Rows r(arena);
  float *state = arena.take(2 * kRow), *out = arena.take(2 * kSegment * kRow);
  if (scratch == nullptr) return arena.used();
  std::fill_n(scratch, arena.used(), 0.0f);
  const int64_t width = std::min(kRow, p.channels - c);
  const auto& in = p.call.in;
  const CallSpan s = call_span(p.call.head, p.time, n);
  float* kept =
      p.kept == nullptr
          ? nullptr
          : p.kept + segments_before(p.call.head, p.time, n) * p.numbers() * p.channels + c;
  load_state_row(p, in.initial_state, n, c, width, r, state);
  for (int64_t t = 0; t < s.length; t += kSegment) {
    const int64_t l = std::min(kSegment, s.length - t);
    if (kept != nullptr) {
      store_rows(state, kRow, p.numbers(), width, reinterpret_cast<char*>(kept), p.channels * 4,
                 HEED_FLOAT32);
      kept += p.numbers() * p.channels;
    }
    load_factors(p, s, t, l, c, width, t == 0, r);
    load_numbers(p, in.x, s.b, s.begin + t, l, c, width, r, r.x);
    sweep_segment(p, r, l, state, out, nullptr);
    if (p.writes) store_numbers(p, out, in.out, s.b, s.begin + t, l, c, width, r);
  }
  if (p.writes) store_state_row(p, state, in.final_state, n, c, width, r);
  return arena.used();
}

// Gradients that gather over a segment's tokens; rows as Rows.
struct PlainBack {
  float *go, *dx, *ddecay, *dturn, *before, *out, *state, *dh;

  explicit PlainBack(Arena& arena) {
    for (float** p : {&go, &dx, &ddecay, &dturn, &before, &out}) {
      *p = arena.take(2 * kSegment * kRow);
    }
    state = arena.take(2 * kRow);
    dh = arena.take(2 * kRow);
  }
};

// Back through a segment; where a factor is one for all tokens, its gradient gathers in row 0.
void sweep_back(const PlainProblem& p, const Rows& r, const PlainBack& b, int64_t length,
                int64_t i) {
  const DF d;
  Pair dh = load_pair(b.dh + i);
  for (int64_t t = length - 1; t >= 0; --t) {
    const int64_t row = t * 2 * kRow + i;
    const Pair go = load_pair(b.go + row), before = load_pair(b.before + row);
    dh = {hn::Add(dh.re, go.re), hn::Add(dh.im, go.im)};
    store_pair(dh, b.dx + row);
    const float* decay = r.decay + t * r.decay_step + i;
    const VF hi = hn::LoadU(d, decay), lo = hn::LoadU(d, decay + kRow), a = hn::Add(hi, lo);
    Pair turn = {hn::Set(d, 1.0f), hn::Zero(d)};
    if (p.turned) turn = load_pair(r.turn + t * r.turn_step + i);
    const Pair turned = times(turn, before);
    float* ddecay = b.ddecay + t * r.decay_step + i;
    VF dl = hn::Mul(a, hn::MulAdd(dh.re, turned.re, hn::Mul(dh.im, turned.im)));
    if (r.decay_step == 0) dl = hn::Add(dl, hn::LoadU(d, ddecay));
    hn::StoreU(dl, d, ddecay);
    if (p.turned) {
      Pair dt = conj_times(before, dh);
      dt = {hn::Mul(a, dt.re), hn::Mul(a, dt.im)};
      float* to = b.dturn + t * r.turn_step + i;
      if (r.turn_step == 0) {
        const Pair sum = load_pair(to);
        dt = {hn::Add(dt.re, sum.re), hn::Add(dt.im, sum.im)};
      }
      store_pair(dt, to);
      dh = conj_times(turn, dh);
    }
    dh = {hn::MulAdd(hi, dh.re, hn::Mul(lo, dh.re)), hn::MulAdd(hi, dh.im, hn::Mul(lo, dh.im))};
  }
  store_pair(dh, b.dh + i);
}

void segment_back(const PlainProblem& p, Rows& r, const PlainBack& b, const CallSpan& s, int64_t t,
                  int64_t c, int64_t width, const float* kept, bool first) {
  const auto& g = p.call.grad;
  const int64_t l = std::min(kSegment, s.length - t), at_token = s.begin + t;
  load_rows(reinterpret_cast<const char*>(kept + c), p.channels * 4, HEED_FLOAT32, p.numbers(),
            width, 1, nullptr, b.state, kRow);
  load_factors(p, s, t, l, c, width, first, r);
  load_numbers(p, p.call.in.x, s.b, at_token, l, c, width, r, r.x);
  sweep_segment(p, r, l, b.state, b.out, b.before);
  if (g.out.data != nullptr) load_numbers(p, g.out, s.b, at_token, l, c, width, r, b.go);
  for (int64_t i = 0; i < kRow; i += kLanes) sweep_back(p, r, b, l, i);
  store_numbers(p, b.dx, g.x, s.b, at_token, l, c, width, r);
  if (g.log_decay.data != nullptr && r.decay_step != 0) {
    store_tokens(b.ddecay, 2 * kRow, g.log_decay, s.b, at_token, l, c, width);
  }
  if (p.turned && r.turn_step != 0) {
    store_numbers(p, b.dturn, g.turn, s.b, at_token, l, c, width, r);
  }
}

// Channels from c on of every sequence: what has no token dimension gathers over all.
int64_t backward_task(const PlainProblem& p, int64_t c, float* scratch) {
  Arena arena(scratch);
  Rows r(arena);
  const PlainBack b(arena);
  if (scratch == nullptr) return arena.used();
  std::fill_n(scratch, arena.used(), 0.0f);
  const int64_t width = std::min(kRow, p.channels - c);
  const auto& g = p.call.grad;
  bool first = true;
  for (int64_t n = 0; n < p.sequences; ++n) {
    const CallSpan s = call_span(p.call.head, p.time, n);
    load_state_row(p, g.final_state, n, c, width, r, b.dh);
    const int64_t before = segments_before(p.call.head, p.time, n);
    for (int64_t i = (s.length + kSegment - 1) / kSegment - 1; i >= 0; --i) {
      const float* kept = p.kept + (before + i) * p.numbers() * p.channels;
      segment_back(p, r, b, s, i * kSegment, c, width, kept, first);
      first = false;
    }
    store_state_row(p, b.dh, g.initial_state, n, c, width, r);
  }
  if (g.log_decay.data != nullptr && g.log_decay.rank == 1) {
    store_row(b.ddecay, width, at(g.log_decay, c), HEED_FLOAT32);
  }
  if (g.turn.data != nullptr && g.turn.rank == 2) {
    join_pairs(b.dturn, 1, r.pairs);
    store_row(r.pairs, 2 * width, at(g.turn, c), HEED_FLOAT32);
  }
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

const EwscanCall& call_of(const void* call) { return *static_cast<const EwscanCall*>(call); }

int64_t kept_floats(const PlainProblem& p) {
  const int64_t time = p.call.head.cu_seqlens ? p.time + p.sequences * kEwscanSegment : p.time;
  const int64_t sequences = p.call.head.cu_seqlens ? 1 : p.sequences;
  return sequences * ((time + kEwscanSegment - 1) / kEwscanSegment) * p.numbers() * p.channels;
}

Scratch scratch_of(const PlainProblem& p, int32_t pass) {
  const int64_t forward = HWY_DYNAMIC_DISPATCH(forward_task)(p, 0, 0, nullptr);
  if (pass != HEED_BACKWARD) return {0, forward};
  const int64_t backward = HWY_DYNAMIC_DISPATCH(backward_task)(p, 0, nullptr);
  return {p.kept == nullptr ? kept_floats(p) : 0, std::max(forward, backward)};
}

int64_t workspace(const void* c, int32_t pass, int32_t threads) {
  CallSizes size;
  if (check_ewscan(call_of(c), pass, CallDtypes::kKernel, &size, nullptr) != HEED_OK) return 0;
  return scratch_of(PlainProblem(call_of(c), size), pass).bytes(threads);
}

int64_t saved(const void* c) {
  CallSizes size;
  const heed_status status =
      check_ewscan(call_of(c), HEED_FORWARD, CallDtypes::kKernel, &size, nullptr);
  return status == HEED_OK ? 4 * kept_floats(PlainProblem(call_of(c), size)) : 0;
}

void run_forward(const PlainProblem& p, const Scratch& scratch, void* workspace,
                 const heed_parallel* parallel) {
  const int64_t blocks = (p.channels + kPlainWidth - 1) / kPlainWidth;
  const auto task = HWY_DYNAMIC_DISPATCH(forward_task);
  parallel_for(parallel, p.sequences * blocks, [&](int64_t i, int32_t worker) {
    task(p, i / blocks, i % blocks * kPlainWidth, scratch.of(workspace, worker));
  });
}

heed_status run(const void* c, int32_t pass, void* workspace, void* /*stream*/,
                const heed_parallel* parallel, heed_message* message) {
  CallSizes size;
  const heed_status status = check_ewscan(call_of(c), pass, CallDtypes::kKernel, &size, message);
  if (status != HEED_OK) return status;
  PlainProblem p(call_of(c), size);
  const Scratch scratch = scratch_of(p, pass);
  if (pass != HEED_BACKWARD) {
    run_forward(p, scratch, workspace, parallel);
    return HEED_OK;
  }
  if (p.kept == nullptr) {
    p.kept = scratch.all(workspace);
    p.writes = false;
    run_forward(p, scratch, workspace, parallel);
  }
  const auto task = HWY_DYNAMIC_DISPATCH(backward_task);
  const int64_t blocks = (p.channels + kPlainWidth - 1) / kPlainWidth;
  parallel_for(parallel, blocks, [&](int64_t i, int32_t worker) {
    task(p, i * kPlainWidth, scratch.of(workspace, worker));
  });
  return HEED_OK;
}

}  // namespace

std::span<const heed_backend> ewscan_backends() {
  static const heed_backend rows[] = {
      {sizeof(heed_backend), "ewscan", "cpu", HEED_CPU, 100, nullptr, workspace, saved, run}};
  return rows;
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
