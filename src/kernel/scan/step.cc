// scan_step: one token, the state updated in place. The state is read and written once from memory:
// the corrected forms go over a block of 128 columns twice while it is in the cache.
#include <algorithm>

#include "kernel/parallel.h"
#include "kernel/scan/problem.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/scan/step.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/scan/block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

constexpr int64_t kStepColumns = 128;
// The state is asked for so far ahead, into the second-level cache, which has more misses under way
// than the first.
constexpr int64_t kStepAhead = 4096;  // bytes

HWY_INLINE void fetch_ahead(const float* at, int64_t width) {
  const auto first = reinterpret_cast<uintptr_t>(at) + kStepAhead;
  for (int64_t i = 0; i < width * 4; i += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(first + static_cast<uintptr_t>(i)), 1, 2);
  }
}

// The rows of one token, in floats; two-float decays keep many steps from drifting.
struct StepRows {
  float *q, *k, *c, *p, *hi, *lo, *log_decay, *bonus;
  int64_t ldk;

  StepRows(int64_t dk, Arena& arena) : ldk(pad_to(dk, 16)) {
    for (float** row : {&q, &k, &c, &p, &hi, &lo, &log_decay, &bonus}) *row = arena.take(ldk);
  }

  void load(const ScanProblem& s, int64_t n, int64_t h) const {
    const DF d;
    load_row(token_row(s.q, n, 0, h), s.q.dtype, s.dk, s.scale, q);
    load_row(token_row(s.k, n, 0, h), s.k.dtype, s.dk, 1, k);
    if (s.correction == Correction::kGeneral) {
      load_row(token_row(s.p, n, 0, h), s.p.dtype, s.dk, 1, p);
      load_row(token_row(s.r, n, 0, h), s.r.dtype, s.dk, 1, c);
    }
    if (s.decay == Decay::kChannel) {
      load_row(token_row(s.log_decay, n, 0, h), HEED_FLOAT32, s.dk, 1, log_decay);
    } else {
      const float value = s.decay == Decay::kNone ? 0.0f : token_scalar(s.log_decay, n, 0, h);
      std::fill_n(log_decay, ldk, value);
    }
    for (int64_t i = 0; i < ldk; i += kLanes) {
      const TwoFloats a = exp_two(hn::LoadU(d, log_decay + i));
      hn::StoreU(a.hi, d, hi + i);
      hn::StoreU(a.lo, d, lo + i);
      if (s.correction == Correction::kDelta) {  // the correction reads after the decay
        hn::StoreU(hn::Mul(hn::Add(a.hi, a.lo), hn::LoadU(d, k + i)), d, c + i);
      }
    }
    if (s.bonus) load_row(s.bonus.data + h * s.bonus.h * 4, HEED_FLOAT32, s.dk, 1, bonus);
  }

  // What the token's own value is read with.
  float own(const ScanProblem& s) const {
    float sum = 0;
    if (!s.bonus) return sum;
    for (int64_t i = 0; i < s.dk; ++i) sum += q[i] * bonus[i] * k[i];
    return sum;
  }
};

int64_t step_scratch(const ScanProblem& s) {
  Arena arena(nullptr);
  StepRows rows(s.dk, arena);
  return arena.used();
}

// At most kStepColumns columns of one state: rows of it before and after, and the token's values.
struct StepBlock {
  const ScanTensor &from, &to;
  const float* in;  // null: zeros
  float* result;    // null: not wanted
  int64_t width, whole;
  bool direct;  // no copy through `row` for the last columns
  HWY_ALIGN float value[kStepColumns], write[kStepColumns], read[kStepColumns], out[kStepColumns];
  HWY_ALIGN float row[kStepColumns];

  StepBlock(const ScanProblem& s, int64_t n, int64_t h, int64_t first, int64_t width)
      : from(s.initial_state),
        to(s.final_state),
        in(from ? reinterpret_cast<const float*>(from.data) + n * from.b + h * from.t + first
                : nullptr),
        result(to ? reinterpret_cast<float*>(to.data) + n * to.b + h * to.t + first : nullptr),
        width(width),
        whole(pad_to(width, kLanes)),
        direct(width % kLanes == 0) {}

  HWY_INLINE const float* before(int64_t i) {
    if (in == nullptr) {
      std::fill_n(row, whole, 0.0f);
      return row;
    }
    if (direct) return in + i * from.h;
    load_row(reinterpret_cast<const char*>(in + i * from.h), HEED_FLOAT32, width, 1, row);
    return row;
  }

  // read = c S, for the correction.
  HWY_INLINE void read_state(const StepRows& x, int64_t dk) {
    const DF d;
    const int64_t count = whole, ahead = width;  // what vectors are stored to might be this
    for (int64_t i = 0; i < dk; ++i) {
      const float* at = before(i);
      fetch_ahead(at, ahead);
      const VF c = hn::Set(d, x.c[i]);
      for (int64_t e = 0; e < count; e += kLanes) {
        hn::Store(hn::MulAdd(c, hn::LoadU(d, at + e), hn::Load(d, read + e)), d, read + e);
      }
    }
  }

  // The state after the token, and what q reads of it (or of the one before).
  HWY_INLINE void advance(const StepRows& x, const ScanProblem& s) {
    const DF d;
    const bool general = s.correction == Correction::kGeneral,
               ask = s.correction == Correction::kNone;
    const bool read_before = s.read_before(), in_place = direct && result != nullptr;
    const int64_t dk = s.dk, count = whole, ahead = width;
    for (int64_t i = 0; i < dk; ++i) {
      const float* at = before(i);
      if (ask) fetch_ahead(at, ahead);
      float* next = in_place ? result + i * to.h : row;
      const VF q = hn::Set(d, x.q[i]), k = hn::Set(d, x.k[i]), p = hn::Set(d, x.p[i]);
      const VF hi = hn::Set(d, x.hi[i]), lo = hn::Set(d, x.lo[i]);
      for (int64_t e = 0; e < count; e += kLanes) {
        const VF old = hn::LoadU(d, at + e);
        VF now = hn::MulAdd(old, hi, hn::Mul(old, lo));
        if (general) now = hn::MulAdd(p, hn::Load(d, read + e), now);
        now = hn::MulAdd(k, hn::Load(d, write + e), now);
        const VF seen = read_before ? old : now;
        hn::Store(hn::MulAdd(q, seen, hn::Load(d, out + e)), d, out + e);
        hn::StoreU(now, d, next + e);
      }
      if (!direct && result != nullptr) {
        store_row(row, width, reinterpret_cast<char*>(result + i * to.h), HEED_FLOAT32);
      }
    }
  }
};

void step_task(const ScanProblem& s, int64_t n, int64_t h, ScanColumns columns, float* scratch) {
  Arena arena(scratch);
  const StepRows x(s.dk, arena);
  x.load(s, n, h);
  const float own = x.own(s);
  const bool delta = s.correction == Correction::kDelta;
  const float beta = delta ? token_scalar(s.beta, n, 0, h) : 1.0f;
  const int64_t end = columns.begin + columns.width;
  for (int64_t first = columns.begin; first < end; first += kStepColumns) {
    StepBlock b(s, n, h, first, std::min(kStepColumns, end - first));
    load_row(token_row(s.v, n, 0, h, first), s.v.dtype, b.width, 1, b.value);
    std::fill_n(b.read, kStepColumns, 0.0f);
    if (s.correction != Correction::kNone) b.read_state(x, s.dk);
    for (int64_t e = 0; e < b.whole; ++e) {
      b.write[e] = delta ? beta * (b.value[e] - b.read[e]) : b.value[e];
      b.out[e] = own * b.value[e];
    }
    b.advance(x, s);
    store_row(b.out, b.width, const_cast<char*>(token_row(s.out, n, 0, h, first)), s.out.dtype);
  }
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(step_scratch);
HWY_EXPORT(step_task);

int64_t scan_step_bytes(const ScanProblem& s, int32_t threads) {
  return ScanScratch::bytes(HWY_DYNAMIC_DISPATCH(step_scratch)(s), threads);
}

void scan_step(const ScanProblem& s, void* workspace, const heed_parallel* parallel) {
  const int32_t threads = parallel_threads(parallel);
  const int64_t pairs = s.sequences * s.heads;
  const int64_t blocks = scan_column_blocks(pairs, s.dv, threads);
  const ScanScratch scratch(workspace, HWY_DYNAMIC_DISPATCH(step_scratch)(s), threads);
  const auto task = HWY_DYNAMIC_DISPATCH(step_task);
  // Runs of states that are neighbours in memory.
  const int64_t items = pairs * blocks, runs = std::min<int64_t>(items, 8 * threads);
  parallel_for(parallel, runs, [&](int64_t run, int32_t worker) {
    for (int64_t i = items * run / runs; i < items * (run + 1) / runs; ++i) {
      const int64_t pair = i / blocks;
      task(s, pair / s.heads, pair % s.heads, scan_columns(i % blocks, blocks, s.dv),
           scratch.of(worker));
    }
  });
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
