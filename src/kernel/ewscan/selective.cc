// selective_scan on vectors of channels: the K states of a vector of channels stay in registers
// while they sweep over a segment of tokens, each decay exp(d A) as a power of two and a float.
// Backward takes the states kept at the segments' starts, computes those in between again, and goes
// back through the segment; the gradients of B and C, sums over channels, are gathered per worker.
#include <hwy/cache_control.h>

#include <cmath>

#include "kernel/parallel.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/ewscan/selective.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/ewscan/rows-inl.h"

#ifndef HEED_KERNEL_EWSCAN_SELECTIVE_H_
#define HEED_KERNEL_EWSCAN_SELECTIVE_H_
namespace heed::kernel {
namespace {

// A checked call. `kept`: the states at the segments' starts, [segments, K, C], or nullptr.
struct SelectiveProblem {
  const SelectiveCall& call;
  int64_t time, channels, groups, states, sequences;
  float* kept;
  bool writes;  // out and final_state, not only kept

  SelectiveProblem(const SelectiveCall& call, const CallSizes& size)
      : call(call),
        time(size["T"]),
        channels(size["C"]),
        groups(size["G"]),
        states(size["K"]),
        sequences(size["N"]),
        kept(static_cast<float*>(call.head.saved)),
        writes(true) {}
};

// Channels [begin, begin + width) of one group.
struct ChannelBlock {
  int64_t group, begin, width;
};
int64_t blocks_of(const SelectiveProblem& p, int64_t width) {
  return p.groups * ((p.channels / p.groups + width - 1) / width);
}
ChannelBlock block_of(const SelectiveProblem& p, int64_t i, int64_t width) {
  const int64_t a_group = p.channels / p.groups, blocks = (a_group + width - 1) / width;
  const int64_t first = i % blocks * width;
  return {i / blocks, i / blocks * a_group + first, std::min(width, a_group - first)};
}

// The gradients of B and C of one worker's channels: [B, T, G, ks] each.
struct SharedGrads {
  float *b, *c;
};

}  // namespace
}  // namespace heed::kernel
#endif

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {
namespace {

constexpr int kStates = kLanes >= 16 ? 8 : 4;           // states in registers
constexpr int64_t kVector = kLanes > 16 ? kLanes : 16;  // a row of one vector, padded

// d = dt + dt_bias, through softplus where the call says so; `raw` keeps the sum where it is given.
void step_sizes(const SelectiveProblem& p, int64_t length, int64_t ld, const float* bias, float* dt,
                float* raw) {
  const DF d;
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t i = 0; i < ld; i += kLanes) {
      float* at = dt + t * ld + i;
      const VF x = hn::Add(hn::LoadU(d, at), hn::LoadU(d, bias + i));
      if (raw != nullptr) hn::StoreU(x, d, raw + t * ld + i);
      hn::StoreU(p.call.options.dt_softplus ? softplus_of(x) : x, d, at);
    }
  }
}

constexpr float kLog2E = 1.44269504f;

// exp2(step rate) = 2^n (1 + f p), with n whole, |f| <= 1/2 and f p rounded once. A factor rounded
// as a whole, applied at every token, would drift. kAny takes every exponent, 0 below -126.5;
// without it the exponent is at most kModerate in size.
template <bool kAny>
struct Decay {
  VF n, f, p;

  Decay(VF step, VF rate) {
    const DF d;
    // 1.5 2^23 rounds to an integer, which lands with 127 added in the lowest bits.
    const VF magic = hn::Set(d, 12582912.0f + 127.0f);
    if constexpr (kAny) {
      // The second argument of Max is the one that lets NaN through on x86.
      const VF x = hn::Max(hn::Set(d, -127.0f), hn::Mul(step, rate));
      n = hn::Sub(hn::Add(x, magic), magic);
      f = hn::Sub(x, n);
    } else {
      n = hn::Sub(hn::MulAdd(step, rate, magic), magic);
      f = hn::MulSub(step, rate, n);
    }
    p = hn::Set(d, 1.54679990e-4f);  // (2^f - 1) / f, relative error below 2e-8
    p = hn::MulAdd(p, f, hn::Set(d, 1.33878621e-3f));
    p = hn::MulAdd(p, f, hn::Set(d, 9.61803738e-3f));
    p = hn::MulAdd(p, f, hn::Set(d, 5.55036627e-2f));
    p = hn::MulAdd(p, f, hn::Set(d, 2.40226507e-1f));
    p = hn::MulAdd(p, f, hn::Set(d, 6.93147182e-1f));
  }
  VF hi() const { return times_power_of_two(hn::Set(DF(), 1.0f), n); }
  VF lo() const { return times_power_of_two(hn::Mul(f, p), n); }  // 2^x = hi + lo
  // exp2(step rate) y + in b.
  VF apply(VF y, VF in, VF b) const {
    return hn::MulAdd(in, b, times_power_of_two(hn::MulAdd(hn::Mul(f, y), p, y), n));
  }
};

// N states of one vector of channels over the tokens of a segment; y gathers what is read. A: times
// log2(e).
template <int N, bool kAny>
HWY_INLINE void sweep_states(int64_t length, const float* HWY_RESTRICT dt,
                             const float* HWY_RESTRICT dx, int64_t ld, const float* HWY_RESTRICT A,
                             const float* HWY_RESTRICT b, const float* HWY_RESTRICT c, int64_t row,
                             float* HWY_RESTRICT h, float* HWY_RESTRICT y, Fetch& next) {
  const DF d;
  VF state[N];
  HWY_UNROLL(8)
  for (int n = 0; n < N; ++n) state[n] = hn::LoadU(d, h + n * ld);
  for (int64_t t = 0; t < length; ++t) {
    const VF step = hn::LoadU(d, dt + t * ld), in = hn::LoadU(d, dx + t * ld);
    VF sum = hn::LoadU(d, y + t * ld);
    HWY_UNROLL(8)
    for (int n = 0; n < N; ++n) {
      const Decay<kAny> a(step, hn::LoadU(d, A + n * ld));
      state[n] = a.apply(state[n], in, hn::Set(d, b[t * row + n]));
      sum = hn::MulAdd(state[n], hn::Set(d, c[t * row + n]), sum);
    }
    hn::StoreU(sum, d, y + t * ld);
    next.advance(N);
  }
  HWY_UNROLL(8)
  for (int n = 0; n < N; ++n) hn::StoreU(state[n], d, h + n * ld);
}

// The largest exponents that Decay<false> takes.
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
constexpr float kModerate = 1048576.0f;
#else
constexpr float kModerate = 126.0f;
#endif

// Whether all exponents of one vector of channels in a segment are at most as large.
bool moderate(int64_t length, int64_t states, const float* dt, const float* A, int64_t ld) {
  const DF d;
  VF step = hn::Zero(d), rate = hn::Zero(d);
  for (int64_t t = 0; t < length; ++t) step = hn::Max(hn::Abs(hn::LoadU(d, dt + t * ld)), step);
  for (int64_t n = 0; n < states; ++n) rate = hn::Max(hn::Abs(hn::LoadU(d, A + n * ld)), rate);
  return hn::AllTrue(d, hn::Le(hn::Mul(step, rate), hn::Set(d, kModerate)));
}

// All states of one vector of channels; rows of `next` are asked for on the way.
template <bool kAny>
void sweep_vector(int64_t length, int64_t states, const float* dt, const float* dx, int64_t ld,
                  const float* A, const float* b, const float* c, int64_t row, float* h, float* y,
                  Fetch& next) {
  int64_t n = 0;
  for (; n + kStates <= states; n += kStates) {
    sweep_states<kStates, kAny>(length, dt, dx, ld, A + n * ld, b + n, c + n, row, h + n * ld, y,
                                next);
  }
  for (; n < states; n += 4) {  // padded to 4
    sweep_states<4, kAny>(length, dt, dx, ld, A + n * ld, b + n, c + n, row, h + n * ld, y, next);
  }
}

// All states of `ld` channels.
void sweep_segment(int64_t length, int64_t states, const float* dt, const float* dx, int64_t ld,
                   const float* A, const float* b, const float* c, int64_t row, float* h, float* y,
                   Fetch& next) {
  next.spread(length * pad_to(states, 4) * (ld / kLanes));
  for (int64_t i = 0; i < ld; i += kLanes) {
    const auto sweep =
        moderate(length, states, dt + i, A + i, ld) ? sweep_vector<false> : sweep_vector<true>;
    sweep(length, states, dt + i, dx + i, ld, A + i, b, c, row, h + i, y + i, next);
  }
}

// out[i] = a[i] b[i] over rows.
void multiply_rows(int64_t count, const float* a, const float* b, float* out) {
  const DF d;
  for (int64_t i = 0; i < count; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, out + i);
  }
}
// y times silu(z).
void gate_rows(int64_t count, const float* z, float* y) {
  const DF d;
  for (int64_t i = 0; i < count; i += kLanes) {
    // silu(x) = x / (1 + e) for x >= 0, x e / (1 + e) below, e = exp(-|x|): one division.
    const VF x = hn::LoadU(d, z + i), one = hn::Set(d, 1.0f);
    const VF e = exp_of(hn::Neg(hn::Abs(x)));
    const VF top = hn::Mul(x, hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one));
    hn::StoreU(hn::Div(hn::Mul(hn::LoadU(d, y + i), top), hn::Add(one, e)), d, y + i);
  }
}
// y = skip x, row by row.
void skip_rows(int64_t length, int64_t ld, const float* skip, const float* x, float* y) {
  for (int64_t t = 0; t < length; ++t) multiply_rows(ld, skip, x + t * ld, y + t * ld);
}

// Outputs of many megabytes go past the caches: their lines are not read before they are written.
constexpr int64_t kPastCaches = int64_t{2} << 20;  // bytes
bool past_caches(const SelectiveProblem& p, const heed_view& v) {
  return HEED_VECTOR_TARGET && v.data != nullptr && v.dtype == HEED_FLOAT32 &&
         p.sequences * p.time * p.channels * 4 >= kPastCaches &&
         reinterpret_cast<uintptr_t>(v.data) % 64 == 0 && v.strides[1] % 16 == 0 &&
         v.strides[0] % 16 == 0;
}
void stream_tokens(const float* from, int64_t ld, const heed_view& v, int64_t b, int64_t t,
                   int64_t length, int64_t first, int64_t width) {
  const DF d;
  for (int64_t i = 0; i < length; ++i) {
    auto* to = reinterpret_cast<float*>(at(v, b, t + i, first));
    for (int64_t c = 0; c < width; c += kLanes) {
      hn::Stream(hn::LoadU(d, from + i * ld + c), d, to + c);
    }
  }
}

void load_channel(const heed_view& v, int64_t c, int64_t width, int64_t ld, float* to) {
  std::fill_n(to, ld, 0.0f);
  for (int64_t i = 0; given(v) && i < width; ++i) to[i] = static_cast<float>(load(v, c + i));
}

// The inputs of one block of channels for the tokens from t on of a sequence, to be asked for
// early: their rows lie too far apart for the processor to see what comes.
void fetch_tokens(const SelectiveProblem& p, const CallSpan& s, ChannelBlock ch, int64_t t,
                  Fetch& next) {
  const auto& in = p.call.in;
  const int64_t rows = std::min(kSegment, s.length - t);
  next.clear();
  for (const heed_view* v : {&in.x, &in.dt, &in.z}) {
    if (rows <= 0 || !given(*v)) continue;
    const int64_t bytes = dtype_size(v->dtype);
    next.add(at(*v, s.b, s.begin + t, ch.begin), v->strides[1] * bytes, rows, ch.width * bytes);
  }
}

// One sequence's block of channels. With scratch == nullptr only counts the floats that it needs.
int64_t forward_task(const SelectiveProblem& p, int64_t n, ChannelBlock ch, float* scratch) {
  const int64_t ld = pad_to(ch.width, kVector), row = pad_to(p.states, 16);
  const int64_t ks = pad_to(p.states, 4);
  Arena arena(scratch);
  float *x = arena.take(kSegment * ld), *dt = arena.take(kSegment * ld);
  float *y = arena.take(kSegment * ld), *z = arena.take(kSegment * ld);
  float *b = arena.take(kSegment * row), *c = arena.take(kSegment * row);
  float *A = arena.take(ks * ld), *h = arena.take(ks * ld), *tile = arena.take(ld * row);
  float *bias = arena.take(ld), *skip = arena.take(ld);
  if (scratch == nullptr) return arena.used();
  const auto& in = p.call.in;
  load_columns(at(in.A, ch.begin), in.A.strides[0] * 4, ch.width, p.states, tile, A, ld);
  for (int64_t i = 0; i < ks * ld; ++i) A[i] *= kLog2E;
  load_columns(given(in.initial_state) ? at(in.initial_state, n, ch.begin) : nullptr, p.states * 4,
               ch.width, p.states, tile, h, ld);
  load_channel(in.dt_bias, ch.begin, ch.width, ld, bias);
  load_channel(in.D, ch.begin, ch.width, ld, skip);
  std::fill_n(x, 4 * kSegment * ld, 0.0f);
  const CallSpan s = call_span(p.call.head, p.time, n);
  Fetch next;
  float* kept =
      p.kept == nullptr
          ? nullptr
          : p.kept + segments_before(p.call.head, p.time, n) * p.states * p.channels + ch.begin;
  for (int64_t t = 0; t < s.length; t += kSegment) {
    const int64_t l = std::min(kSegment, s.length - t), first = s.begin + t;
    if (kept != nullptr) {
      store_rows(h, ld, p.states, ch.width, reinterpret_cast<char*>(kept), p.channels * 4,
                 HEED_FLOAT32);
      kept += p.states * p.channels;
    }
    load_tokens(in.x, s.b, first, l, ch.begin, ch.width, x, ld);
    load_tokens(in.dt, s.b, first, l, ch.begin, ch.width, dt, ld);
    load_tokens(in.B, s.b, first, l, ch.group, p.states, b, row);
    load_tokens(in.C, s.b, first, l, ch.group, p.states, c, row);
    step_sizes(p, l, ld, bias, dt, nullptr);
    skip_rows(l, ld, skip, x, y);
    multiply_rows(l * ld, dt, x, x);
    fetch_tokens(p, s, ch, t + l, next);
    sweep_segment(l, p.states, dt, x, ld, A, b, c, row, h, y, next);
    if (!p.writes) continue;
    if (given(in.z)) {
      load_tokens(in.z, s.b, first, l, ch.begin, ch.width, z, ld);
      gate_rows(l * ld, z, y);
    }
    if (ch.begin % 16 == 0 && ch.width % 16 == 0 && past_caches(p, in.out)) {
      stream_tokens(y, ld, in.out, s.b, first, l, ch.begin, ch.width);
    } else {
      store_tokens(y, ld, in.out, s.b, first, l, ch.begin, ch.width);
    }
  }
  hwy::FlushStream();  // before another thread is told that the outputs are there
  if (p.writes && in.final_state.data != nullptr) {
    store_columns(h, ld, ch.width, p.states, tile,
                  reinterpret_cast<float*>(at(in.final_state, n, ch.begin)), p.states);
  }
  return arena.used();
}

// ---- backward
// ---------------------------------------------------------

// Scratch of the backward pass of one vector of channels.
struct Back {
  int64_t row, ks;
  float *x, *dt, *raw, *z, *y, *go, *dx, *ddt, *b, *c;  // rows of a segment
  float *before, *hi, *lo;                              // [ks][segment + 1 or segment][vector]
  float *A, *h, *dh, *dA, *tile, *bias, *skip, *dbias, *dskip;

  Back(int64_t states, Arena& arena) : row(pad_to(states, 16)), ks(pad_to(states, 4)) {
    constexpr int64_t kRows = kSegment * kVector;
    for (float** p : {&x, &dt, &raw, &z, &y, &go, &dx, &ddt}) *p = arena.take(kRows);
    b = arena.take(kSegment * row);
    c = arena.take(kSegment * row);
    before = arena.take(ks * (kRows + kVector));
    hi = arena.take(ks * kRows);
    lo = arena.take(ks * kRows);
    for (float** p : {&A, &h, &dh, &dA}) *p = arena.take(ks * kVector);
    tile = arena.take(kVector * row);
    for (float** p : {&bias, &skip, &dbias, &dskip}) *p = arena.take(kVector);
  }
};

// The states of a segment and their decays once more, and what is read from them.
void states_again(const Back& m, int64_t length) {
  const DF d;
  for (int64_t n = 0; n < m.ks; ++n) {
    VF state = hn::LoadU(d, m.h + n * kVector);
    const VF rate = hn::Mul(hn::LoadU(d, m.A + n * kVector), hn::Set(d, kLog2E));
    float* before = m.before + n * (kSegment + 1) * kVector;
    float *hi = m.hi + n * kSegment * kVector, *lo = m.lo + n * kSegment * kVector;
    for (int64_t t = 0; t < length; ++t) {
      hn::StoreU(state, d, before + t * kVector);
      const Decay<true> a(hn::LoadU(d, m.dt + t * kVector), rate);
      hn::StoreU(a.hi(), d, hi + t * kVector);
      hn::StoreU(a.lo(), d, lo + t * kVector);
      const VF in = hn::Mul(hn::LoadU(d, m.dt + t * kVector), hn::LoadU(d, m.x + t * kVector));
      state = a.apply(state, in, hn::Set(d, m.b[t * m.row + n]));
      float* y = m.y + t * kVector;
      hn::StoreU(hn::MulAdd(state, hn::Set(d, m.c[t * m.row + n]), hn::LoadU(d, y)), d, y);
    }
    hn::StoreU(state, d, before + length * kVector);
  }
}

// Back through a segment for four states: dh and dA go on; dx, ddt gather; db, dc (a row of ks a
// token) gather sums over the channels.
void states_back(const Back& m, int64_t length, int64_t n, float* db, float* dc, int64_t tokens) {
  const DF d;
  VF dh[4], dA[4], rate[4];
  for (int i = 0; i < 4; ++i) {
    dh[i] = hn::LoadU(d, m.dh + (n + i) * kVector);
    dA[i] = hn::LoadU(d, m.dA + (n + i) * kVector);
    rate[i] = hn::LoadU(d, m.A + (n + i) * kVector);
  }
  HWY_ALIGN float sums[8];
  for (int64_t t = length - 1; t >= 0; --t) {
    const int64_t v = t * kVector;
    const VF go = hn::LoadU(d, m.go + v), step = hn::LoadU(d, m.dt + v);
    const VF in = hn::Mul(step, hn::LoadU(d, m.x + v));
    VF din = hn::Zero(d), dstep = hn::Zero(d), toward_b[4], toward_c[4];
    HWY_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      const float* before = m.before + (n + i) * (kSegment + 1) * kVector + v;
      const VF hi = hn::LoadU(d, m.hi + (n + i) * kSegment * kVector + v);
      const VF lo = hn::LoadU(d, m.lo + (n + i) * kSegment * kVector + v);
      dh[i] = hn::MulAdd(go, hn::Set(d, m.c[t * m.row + n + i]), dh[i]);
      toward_c[i] = hn::Mul(go, hn::LoadU(d, before + kVector));
      toward_b[i] = hn::Mul(dh[i], in);
      din = hn::MulAdd(dh[i], hn::Set(d, m.b[t * m.row + n + i]), din);
      dh[i] = hn::MulAdd(hi, dh[i], hn::Mul(lo, dh[i]));
      const VF exponent = hn::Mul(dh[i], hn::LoadU(d, before));
      dstep = hn::MulAdd(exponent, rate[i], dstep);
      dA[i] = hn::MulAdd(exponent, step, dA[i]);
    }
    hn::StoreU(hn::Add(hn::LoadU(d, m.dx + v), din), d, m.dx + v);
    hn::StoreU(hn::Add(hn::LoadU(d, m.ddt + v), dstep), d, m.ddt + v);
    store_sums(toward_b[0], toward_b[1], toward_b[2], toward_b[3], sums);
    store_sums(toward_c[0], toward_c[1], toward_c[2], toward_c[3], sums + 4);
    for (int i = 0; i < 4; ++i) {
      db[t * tokens + n + i] += sums[i];
      dc[t * tokens + n + i] += sums[4 + i];
    }
  }
  for (int i = 0; i < 4; ++i) {
    hn::StoreU(dh[i], d, m.dh + (n + i) * kVector);
    hn::StoreU(dA[i], d, m.dA + (n + i) * kVector);
  }
}

// dx still holds the gradient of dt x and ddt that of the exponents: to those of x and dt.
void inputs_back(const SelectiveProblem& p, const Back& m, int64_t length) {
  const DF d;
  const VF skip = hn::LoadU(d, m.skip);
  VF dskip = hn::LoadU(d, m.dskip), dbias = hn::LoadU(d, m.dbias);
  for (int64_t t = 0; t < length; ++t) {
    const int64_t v = t * kVector;
    const VF x = hn::LoadU(d, m.x + v), din = hn::LoadU(d, m.dx + v), go = hn::LoadU(d, m.go + v);
    dskip = hn::MulAdd(go, x, dskip);
    hn::StoreU(hn::MulAdd(go, skip, hn::Mul(din, hn::LoadU(d, m.dt + v))), d, m.dx + v);
    VF ddt = hn::MulAdd(din, x, hn::LoadU(d, m.ddt + v));
    if (p.call.options.dt_softplus) ddt = hn::Mul(ddt, sigmoid_of(hn::LoadU(d, m.raw + v)));
    dbias = hn::Add(dbias, ddt);
    hn::StoreU(ddt, d, m.ddt + v);
  }
  hn::StoreU(dskip, d, m.dskip);
  hn::StoreU(dbias, d, m.dbias);
}

// go becomes the gradient of what is read, z that of z.
void gate_back(const Back& m, int64_t length) {
  const DF d;
  const VF one = hn::Set(d, 1.0f);
  for (int64_t v = 0; v < length * kVector; v += kLanes) {
    const VF z = hn::LoadU(d, m.z + v), go = hn::LoadU(d, m.go + v), sig = sigmoid_of(z);
    const VF slope = hn::Mul(sig, hn::MulAdd(z, hn::Sub(one, sig), one));
    hn::StoreU(hn::Mul(hn::Mul(go, hn::LoadU(d, m.y + v)), slope), d, m.z + v);
    hn::StoreU(hn::Mul(go, hn::Mul(z, sig)), d, m.go + v);
  }
}

void segment_back(const SelectiveProblem& p, const Back& m, ChannelBlock ch, const CallSpan& s,
                  int64_t t, const float* kept, SharedGrads shared) {
  const auto& in = p.call.in;
  const auto& g = p.call.grad;
  const int64_t l = std::min(kSegment, s.length - t), first = s.begin + t;
  load_rows(reinterpret_cast<const char*>(kept + ch.begin), p.channels * 4, HEED_FLOAT32, p.states,
            ch.width, 1, nullptr, m.h, kVector);
  load_tokens(in.x, s.b, first, l, ch.begin, ch.width, m.x, kVector);
  load_tokens(in.dt, s.b, first, l, ch.begin, ch.width, m.dt, kVector);
  load_tokens(in.B, s.b, first, l, ch.group, p.states, m.b, m.row);
  load_tokens(in.C, s.b, first, l, ch.group, p.states, m.c, m.row);
  std::fill_n(m.go, kSegment * kVector, 0.0f);
  if (g.out.data != nullptr) {
    load_tokens(g.out, s.b, first, l, ch.begin, ch.width, m.go, kVector);
  }
  step_sizes(p, l, kVector, m.bias, m.dt, m.raw);
  skip_rows(l, kVector, m.skip, m.x, m.y);
  states_again(m, l);
  if (given(in.z)) {
    load_tokens(in.z, s.b, first, l, ch.begin, ch.width, m.z, kVector);
    gate_back(m, l);
    store_tokens(m.z, kVector, g.z, s.b, first, l, ch.begin, ch.width);
  }
  std::fill_n(m.dx, kSegment * kVector, 0.0f);
  std::fill_n(m.ddt, kSegment * kVector, 0.0f);
  const int64_t tokens = p.groups * m.ks;
  const int64_t at_token = ((s.b * p.time + first) * p.groups + ch.group) * m.ks;
  for (int64_t n = 0; n < m.ks; n += 4) {
    states_back(m, l, n, shared.b + at_token, shared.c + at_token, tokens);
  }
  inputs_back(p, m, l);
  store_tokens(m.dx, kVector, g.x, s.b, first, l, ch.begin, ch.width);
  store_tokens(m.ddt, kVector, g.dt, s.b, first, l, ch.begin, ch.width);
}

void store_channel(const float* from, const heed_view& v, int64_t c, int64_t width) {
  for (int64_t i = 0; v.data != nullptr && i < width; ++i) store(v, from[i], c + i);
}

// One vector of channels of every sequence.
int64_t backward_task(const SelectiveProblem& p, ChannelBlock ch, SharedGrads shared,
                      float* scratch) {
  Arena arena(scratch);
  const Back m(p.states, arena);
  if (scratch == nullptr) return arena.used();
  std::fill_n(scratch, arena.used(), 0.0f);
  const auto& in = p.call.in;
  const auto& g = p.call.grad;
  load_columns(at(in.A, ch.begin), in.A.strides[0] * 4, ch.width, p.states, m.tile, m.A, kVector);
  load_channel(in.dt_bias, ch.begin, ch.width, kVector, m.bias);
  load_channel(in.D, ch.begin, ch.width, kVector, m.skip);
  for (int64_t n = 0; n < p.sequences; ++n) {
    const CallSpan s = call_span(p.call.head, p.time, n);
    load_columns(g.final_state.data == nullptr ? nullptr : at(g.final_state, n, ch.begin),
                 p.states * 4, ch.width, p.states, m.tile, m.dh, kVector);
    const int64_t before = segments_before(p.call.head, p.time, n);
    for (int64_t i = (s.length + kSegment - 1) / kSegment - 1; i >= 0; --i) {
      segment_back(p, m, ch, s, i * kSegment, p.kept + (before + i) * p.states * p.channels,
                   shared);
    }
    if (g.initial_state.data == nullptr) continue;
    store_columns(m.dh, kVector, ch.width, p.states, m.tile,
                  reinterpret_cast<float*>(at(g.initial_state, n, ch.begin)), p.states);
  }
  if (g.A.data != nullptr) {
    store_columns(m.dA, kVector, ch.width, p.states, m.tile,
                  reinterpret_cast<float*>(at(g.A, ch.begin)), p.states);
  }
  store_channel(m.dskip, g.D, ch.begin, ch.width);
  store_channel(m.dbias, g.dt_bias, ch.begin, ch.width);
  return arena.used();
}

int64_t vector_width() { return kLanes; }

}  // namespace
}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(forward_task);
HWY_EXPORT(backward_task);
HWY_EXPORT(vector_width);

namespace {

constexpr int64_t kForwardWidth = 64;

const SelectiveCall& call_of(const void* call) { return *static_cast<const SelectiveCall*>(call); }

int64_t kept_floats(const SelectiveProblem& p) {
  const int64_t time = p.call.head.cu_seqlens ? p.time + p.sequences * kEwscanSegment : p.time;
  const int64_t sequences = p.call.head.cu_seqlens ? 1 : p.sequences;
  return sequences * ((time + kEwscanSegment - 1) / kEwscanSegment) * p.states * p.channels;
}

// Channels are cut into as many ranges of vectors as there are threads; each gathers its own part
// of the gradients of B and C, added up in a fixed order afterwards.
int64_t ranges_of(const SelectiveProblem& p, int32_t threads) {
  return std::min<int64_t>(threads, blocks_of(p, HWY_DYNAMIC_DISPATCH(vector_width)()));
}
int64_t shared_floats(const SelectiveProblem& p) {
  const int64_t batch = p.call.head.cu_seqlens ? 1 : p.sequences;
  return batch * p.time * p.groups * ((p.states + 3) / 4 * 4);
}

Scratch scratch_of(const SelectiveProblem& p, int32_t pass, int32_t threads) {
  const ChannelBlock widest = {0, 0, kForwardWidth};
  const int64_t forward = HWY_DYNAMIC_DISPATCH(forward_task)(p, 0, widest, nullptr);
  if (pass != HEED_BACKWARD) return {0, forward};
  const int64_t backward =
      HWY_DYNAMIC_DISPATCH(backward_task)(p, widest, {nullptr, nullptr}, nullptr);
  const int64_t kept = p.kept == nullptr ? kept_floats(p) : 0;
  return {kept + 2 * ranges_of(p, threads) * shared_floats(p), std::max(forward, backward)};
}

int64_t workspace(const void* c, int32_t pass, int32_t threads) {
  CallSizes size;
  if (check_selective_scan(call_of(c), pass, CallDtypes::kKernel, &size, nullptr) != HEED_OK) {
    return 0;  // run() says what is wrong
  }
  return scratch_of(SelectiveProblem(call_of(c), size), pass, threads).bytes(threads);
}

int64_t saved(const void* c) {
  CallSizes size;
  if (check_selective_scan(call_of(c), HEED_FORWARD, CallDtypes::kKernel, &size, nullptr) !=
      HEED_OK) {
    return 0;
  }
  return 4 * kept_floats(SelectiveProblem(call_of(c), size));
}

void run_forward(const SelectiveProblem& p, const Scratch& scratch, void* workspace,
                 const heed_parallel* parallel) {
  const int64_t blocks = blocks_of(p, kForwardWidth);
  const auto task = HWY_DYNAMIC_DISPATCH(forward_task);
  parallel_for(parallel, p.sequences * blocks, [&](int64_t i, int32_t worker) {
    task(p, i / blocks, block_of(p, i % blocks, kForwardWidth), scratch.of(workspace, worker));
  });
}

// grad[b,t,g,k] = the sum of the ranges' parts.
void add_ranges(const float* parts, int64_t ranges, int64_t stride, int64_t rows, int64_t states,
                const heed_view& grad, const heed_parallel* parallel) {
  if (grad.data == nullptr) return;
  const int64_t ks = (states + 3) / 4 * 4;
  float* to = static_cast<float*>(grad.data);
  const int64_t tasks = std::min<int64_t>(rows, 4 * parallel_threads(parallel));
  parallel_for(parallel, tasks, [&](int64_t i, int32_t) {
    for (int64_t r = rows * i / tasks; r < rows * (i + 1) / tasks; ++r) {
      for (int64_t k = 0; k < states; ++k) {
        float sum = 0;
        for (int64_t j = 0; j < ranges; ++j) sum += parts[j * stride + r * ks + k];
        to[r * states + k] = sum;
      }
    }
  });
}

heed_status run(const void* c, int32_t pass, void* workspace, void* /*stream*/,
                const heed_parallel* parallel, heed_message* message) {
  CallSizes size;
  const heed_status status =
      check_selective_scan(call_of(c), pass, CallDtypes::kKernel, &size, message);
  if (status != HEED_OK) return status;
  SelectiveProblem p(call_of(c), size);
  const int32_t threads = parallel_threads(parallel);
  const Scratch scratch = scratch_of(p, pass, threads);
  if (pass != HEED_BACKWARD) {
    run_forward(p, scratch, workspace, parallel);
    return HEED_OK;
  }
  const int64_t ranges = ranges_of(p, threads), part = shared_floats(p);
  float* parts = scratch.all(workspace);
  if (p.kept == nullptr) {
    p.kept = parts + 2 * ranges * part;
    p.writes = false;
    run_forward(p, scratch, workspace, parallel);
  }
  const int64_t width = HWY_DYNAMIC_DISPATCH(vector_width)(), vectors = blocks_of(p, width);
  const auto task = HWY_DYNAMIC_DISPATCH(backward_task);
  parallel_for(parallel, ranges, [&](int64_t i, int32_t worker) {
    const SharedGrads shared = {parts + 2 * i * part, parts + (2 * i + 1) * part};
    std::fill_n(shared.b, 2 * part, 0.0f);
    for (int64_t v = vectors * i / ranges; v < vectors * (i + 1) / ranges; ++v) {
      task(p, block_of(p, v, width), shared, scratch.of(workspace, worker));
    }
  });
  const int64_t rows = part / ((p.states + 3) / 4 * 4);
  add_ranges(parts, ranges, 2 * part, rows, p.states, p.call.grad.B, parallel);
  add_ranges(parts + part, ranges, 2 * part, rows, p.states, p.call.grad.C, parallel);
  return HEED_OK;
}

}  // namespace

std::span<const heed_backend> selective_scan_backends() {
  static const heed_backend rows[] = {{sizeof(heed_backend), "selective_scan", "cpu", HEED_CPU, 100,
                                       nullptr, workspace, saved, run}};
  return rows;
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
