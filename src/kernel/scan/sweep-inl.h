// Scans without a correction: a tile of the state stays in registers while it sweeps over the
// tokens of a block, as the recurrence is written,
//   S += k_t^T v_t,   out_t += q_t S                                  (read before: read, then
//   write)
// so that nothing is computed but the 4 K V flops of a token. Every tile of rows adds its part to
// the outputs; the tiles of a panel of columns sweep over the same values and outputs, which stay
// in the first-level cache.
//
// Decays do not touch the state. It is kept as e^b times what is stored, with b the sum of the log
// decays, one a head or one a row (StateScale): what is read is multiplied by e^b and what is
// written by e^-b. Where |b| grows too large, a power of two goes into the stored numbers
// ("rescale", exact) at the token where it happens; -inf gives a factor of 0. b is a float64 or two
// floats and keeps no rounding that could drift.
//
// Every token rounds the state. That is random and grows with the square root of the tokens that a
// state remembers: 1.2e-6 of it after 4096. Past that the sums of a block are kept beside the state
// ("fine", 10 to 20% slower) and it is rounded once a block.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernel/scan/problem.h"

#if defined(HEED_SCAN_SWEEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_SCAN_SWEEP_INL_H_
#undef HEED_SCAN_SWEEP_INL_H_
#else
#define HEED_SCAN_SWEEP_INL_H_
#endif

#include "kernel/scan/token-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

constexpr int64_t kSweepTokens = 32;
constexpr float kSweepRoom = 5.5f;     // the largest |b|
constexpr float kForgotten = -87;      // e^b is no normal float below: the state is gone
constexpr int64_t kScaleGroup = 16;    // rows of the state that are rescaled together
constexpr int64_t kLongMemory = 4096;  // tokens
constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// b of one head, over the blocks of a sequence.
struct StateScale {
  double sum = 0;                      // where it is one for all rows
  float *hi = nullptr, *lo = nullptr;  // as sums of two floats [ldk], where it is one a row
};

// The lines of a Fetch in runs of one a token, for tiles to ask for as they go: so they never come
// in a burst.
class LineFetch {
 public:
  struct Run {  // lines at + offsets[t], t < kSweepTokens
    const char* at;
    const int64_t* offsets;
  };

  // Lines of `fetch`, which stays as it is, for `tiles` calls of next(). Where there is nothing to
  // fetch, a run has the line of `nothing` over and over.
  void begin(const Fetch& fetch, int64_t tiles, const void* nothing) {
    fetch_ = &fetch;
    none_ = {static_cast<const char*>(nothing), offsets_[Fetch::kMost]};
    int64_t runs = 0;
    for (int i = 0; i < fetch.count; ++i) runs += take_in(i, fetch.list[i]);
    a_tile_ = (runs + tiles - 1) / tiles;
    list_ = 0, row_ = piece_ = 0;
  }
  Run next() {
    for (int64_t i = 1; i < a_tile_; ++i) {  // few tiles, many lines: all but one run at once
      const Run run = take();
      for (int64_t t = 0; t < kSweepTokens; ++t) {
        __builtin_prefetch(run.at + run.offsets[t], 0, 2);
      }
    }
    return take();
  }

 private:
  // Rows of one stride: a run has the lines of `rows` rows, or a piece of a longer row.
  struct List {
    int64_t stride = 0, lines = 0, rows = 1, pieces = 1;
  };

  int64_t take_in(int i, const Fetch::Rows& rows) {
    List& list = lists_[i];
    if (list.stride != rows.stride || list.lines != rows.lines()) {
      list = {rows.stride, rows.lines()};
      const int64_t lines = std::min(list.lines, kSweepTokens);
      list.rows = kSweepTokens / lines;
      list.pieces = (list.lines + kSweepTokens - 1) / kSweepTokens;
      for (int64_t t = 0; t < kSweepTokens; ++t) {
        offsets_[i][t] = t / lines % list.rows * list.stride + t % lines * 64;
      }
    }
    return (rows.count + list.rows - 1) / list.rows * list.pieces;
  }
  Run take() {
    if (list_ >= fetch_->count) return none_;
    const Fetch::Rows& rows = fetch_->list[list_];
    const List& list = lists_[list_];
    const Run run = {rows.data + row_ * rows.stride + piece_ * kSweepTokens * 64, offsets_[list_]};
    if (++piece_ == list.pieces) piece_ = 0, row_ += list.rows;
    if (row_ >= rows.count) row_ = 0, ++list_;
    return run;
  }

  const Fetch* fetch_ = nullptr;
  Run none_{};
  int list_ = 0;
  int64_t row_ = 0, piece_ = 0, a_tile_ = 0;
  List lists_[Fetch::kMost];
  int64_t offsets_[Fetch::kMost + 1][kSweepTokens] = {};
};

// One block of tokens of one head.
struct Sweep : StateShape {
  int64_t block, ldk, length = 0;  // `block` tokens at most
  bool channel, before, bonus;
  bool streams = false;  // outputs, where they go to the caller's memory at once
  bool fine = false;     // the state remembers so many tokens that it is not rounded at each
  TokenReader tokens;
  mutable LineFetch lines;
  float *q, *k;  // [block, ldk]; q holds scale q; per channel times e^b and e^-b
  // Of the panel of columns at hand, [block, ldp]: the same memory for every panel stays in the
  // cache.
  int64_t ldp;
  float* v;                // times `write`
  float* partial;          // outputs of the rows so far
  float* nothing;          // [ldp] zeros: outputs before the first row
  float *read, *write;     // [block]: e^b and e^-b where they are one for all rows, else 1
  float *own, *bonus_row;  // what v adds to the output before `read`, [block]; [ldk]
  float* log_decay;        // per channel [block, ldk]
  // A token may rescale the state before its write: [block, groups] flags, [block, factors].
  uint8_t* rescaled;
  float* rescale;
  int64_t groups, factors;

  Sweep(const ScanProblem& s, int64_t width, Arena& arena) : StateShape(s.dk, width) {
    block = std::min<int64_t>(s.chunk, kSweepTokens);
    ldk = pad_to(s.dk, 16);
    channel = s.decay == Decay::kChannel;
    before = s.read_before();
    bonus = static_cast<bool>(s.bonus);
    groups = channel ? ldk / kScaleGroup : 1;
    factors = channel ? ldk : 1;
    q = arena.take(block * ldk);
    k = arena.take(block * ldk);
    ldp = pad_to(std::min(dv, kWide * kLanes), 16);
    v = arena.take(block * ldp);
    partial = arena.take(block * ldp);
    nothing = arena.take(ldp);
    for (float** each : {&read, &write, &own}) *each = arena.take(block + kLanes);
    bonus_row = arena.take(ldk);
    log_decay = channel ? arena.take(block * ldk) : nullptr;
    rescaled = reinterpret_cast<uint8_t*>(arena.take(block * groups));
    rescale = arena.take(block * factors + kLanes);
  }

  // Fills what no block changes; scratch may hold what another call left.
  void begin() {
    std::fill_n(nothing, ldp, 0.0f);
    std::fill_n(read, block, 1.0f);
    std::fill_n(rescaled, block * groups, uint8_t{0});
  }
};

// e^(hi + lo), lo small.
HWY_INLINE VF exp_of_sum(VF hi, VF lo) {
  const VF e = exp_of(hi);
  return hn::MulAdd(e, lo, e);
}

// Factors of a block with one decay for all rows. Returns the sum of its log decays.
[[maybe_unused]] static HWY_NOINLINE double head_scales(const ScanProblem& s, const Sweep& b,
                                                        double* sum) {
  const DF d;
  const TokenReader& at = b.tokens;
  double total = 0;
  HWY_ALIGN float hi[2][kSweepTokens + kLanes], lo[2][kSweepTokens + kLanes];  // to read, to write
  const auto split = [&](int i, int64_t t, double x) {
    hi[i][t] = static_cast<float>(x);
    lo[i][t] = static_cast<float>(x - hi[i][t]);
  };
  for (int64_t t = 0; t < b.length; ++t) {
    if (b.before) split(0, t, *sum);
    const float log_decay = token_scalar(s.log_decay, at.batch, at.begin + t, at.head);
    total += log_decay;
    *sum += log_decay;
    b.rescaled[t] = std::abs(*sum) > kSweepRoom ? 1 : 0;
    if (b.rescaled[t] != 0) {
      if (*sum < kForgotten) {
        b.rescale[t] = static_cast<float>(std::exp(*sum));
        *sum = 0;
      } else {
        const double power = std::min(std::round(*sum * kLog2e), 127.0);
        b.rescale[t] = std::ldexp(1.0f, static_cast<int>(power));
        *sum -= power * kLn2;
      }
    }
    if (!b.before) split(0, t, *sum);
    split(1, t, -*sum);
  }
  for (int64_t t = b.length; t % kLanes != 0; ++t) split(0, t, 0), split(1, t, 0);
  for (int64_t t = 0; t < b.length; t += kLanes) {
    hn::StoreU(exp_of_sum(hn::Load(d, hi[0] + t), hn::Load(d, lo[0] + t)), d, b.read + t);
    hn::StoreU(exp_of_sum(hn::Load(d, hi[1] + t), hn::Load(d, lo[1] + t)), d, b.write + t);
  }
  return total;
}

// The same with a decay a row: multiplies the rows of q and k. Returns the largest of the sums.
[[maybe_unused]] static HWY_NOINLINE double channel_scales(const Sweep& b,
                                                           const StateScale& scale) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  std::fill_n(b.rescaled, b.length * b.groups, uint8_t{0});
  VF slowest = hn::Set(d, -1e30f);
  for (int64_t e = 0; e < b.ldk; e += kLanes) {
    VF total = hn::Zero(d), hi = hn::LoadU(d, scale.hi + e), lo = hn::LoadU(d, scale.lo + e);
    VF read = exp_of_sum(hi, lo);
    for (int64_t t = 0; t < b.length; ++t) {
      const int64_t at = t * b.ldk + e;
      float *const q = b.q + at, *const k = b.k + at;
      if (b.before) hn::StoreU(hn::Mul(hn::LoadU(d, q), read), d, q);
      // hi + log decay without an error; that of -inf is thrown away below.
      const VF x = hn::LoadU(d, b.log_decay + at), sum = hn::Add(hi, x), x_part = hn::Sub(sum, hi);
      total = hn::Add(total, x);
      lo = hn::Add(lo, hn::Add(hn::Sub(hi, hn::Sub(sum, x_part)), hn::Sub(x, x_part)));
      hi = sum;
      if (!hn::AllFalse(d, hn::Gt(hn::Abs(hi), hn::Set(d, kSweepRoom)))) {
        const auto gone = hn::Lt(hi, hn::Set(d, kForgotten));
        const VF power = hn::Round(hn::Mul(hi, hn::Set(d, static_cast<float>(kLog2e))));
        const auto bits = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, power), hn::Set(di, 127)));
        uint8_t& flag = b.rescaled[t * b.groups + e / kScaleGroup];
        if (flag == 0) std::fill_n(b.rescale + at - e % kScaleGroup, kScaleGroup, 1.0f);
        flag = 1;
        hn::StoreU(hn::IfThenZeroElse(gone, hn::BitCast(d, bits)), d, b.rescale + at);
        // ln 2 in two parts, the first one short: its product is exact.
        hi = hn::NegMulAdd(power, hn::Set(d, 0.693359375f), hi);
        lo = hn::NegMulAdd(power, hn::Set(d, -2.12194440e-4f), lo);
        const VF both = hn::Add(hi, lo);
        lo = hn::IfThenZeroElse(gone, hn::Sub(lo, hn::Sub(both, hi)));
        hi = hn::IfThenZeroElse(gone, both);
      }
      read = exp_of_sum(hi, lo);
      if (!b.before) hn::StoreU(hn::Mul(hn::LoadU(d, q), read), d, q);
      hn::StoreU(hn::Div(hn::LoadU(d, k), read), d, k);
    }
    hn::StoreU(hi, d, scale.hi + e);
    hn::StoreU(lo, d, scale.lo + e);
    const auto used = hn::Lt(hn::Iota(d, static_cast<float>(e)), hn::Set(d, b.dk));
    slowest = hn::Max(slowest, hn::IfThenElse(used, total, slowest));
  }
  return hn::GetLane(hn::MaxOfLanes(d, slowest));
}

// About as many tiles as sweep() takes.
HWY_INLINE int64_t tiles_of(const Sweep& b) {
  return std::max<int64_t>(1, b.dk * b.ldv / (kTileVectors * kLanes));
}

// Loads tokens [t, t + l) of head h, but for their values, and brings their decays into them.
[[maybe_unused]] static HWY_NOINLINE void prepare_sweep(const ScanProblem& s, Sweep& b,
                                                        int64_t batch, int64_t t, int64_t h,
                                                        int64_t l, ScanColumns columns,
                                                        StateScale* scale) {
  // Keys and queries that all heads share (Mamba-2's C and B) are still here from the head before.
  const bool same = s.q.h == 0 && s.k.h == 0 && !b.channel && b.tokens.batch == batch &&
                    b.tokens.begin == t && b.length == l;
  b.length = l;
  b.tokens.start(batch, t, h, l);
  if (!same) {
    b.tokens.load(s.q, b.dk, s.scale, b.q, b.ldk);
    b.tokens.load(s.k, b.dk, 1, b.k, b.ldk);
  }
  const bool one_decay = s.decay == Decay::kHead || s.decay == Decay::kToken;
  double kept = one_decay ? head_scales(s, b, &scale->sum) : 0;  // log of what the block leaves
  b.tokens.fetch_ahead(s.v, b.dv, columns.begin, false);
  if (!b.streams) b.tokens.fetch_ahead(s.out, b.dv, columns.begin, true);
  if (b.bonus) {
    load_row(s.bonus.data + h * s.bonus.h * 4, HEED_FLOAT32, b.dk, 1, b.bonus_row);
    own_reads(b.q, b.k, b.bonus_row, l, b.ldk, b.own);
    for (int64_t i = 0; one_decay && i < l; ++i) b.own[i] /= b.write[i];
  }
  if (b.channel) {
    b.tokens.load(s.log_decay, b.dk, 1, b.log_decay, b.ldk);
    kept = channel_scales(b, *scale);
  }
  const bool late = static_cast<bool>(s.initial_state) || t - b.tokens.first >= kLongMemory;
  b.fine = late && kept * kLongMemory > static_cast<double>(-l);
  b.lines.begin(b.tokens.fetch, tiles_of(b), b.nothing);
}

// Rows [m0, m0 + M) of the state and N vectors of columns: over all tokens of the block, with their
// part of the outputs, from `from` to `to`.
template <int M, int N, bool kBefore, bool kLast, bool kFine>
HWY_NOINLINE void sweep_tile(const Sweep& b, int64_t m0, Rows from, Rows to,
                             float* HWY_RESTRICT state, LineFetch::Run lines) {
  const DF d;
  // Local copies: to the compiler a store of a vector may change any member of `b`.
  const int64_t length = b.length, ldk = b.ldk, ldp = b.ldp, lds = b.lds, groups = b.groups;
  const bool bonus = b.bonus;
  const float *q = b.q + m0, *k = b.k + m0, *v = b.v;
  const float *outputs_by = b.read, *own = b.own;
  const uint8_t* rescaled = b.rescaled + (b.channel ? m0 / kScaleGroup : 0);
  // The state, or with kFine what the block adds to it.
  VF s[M][N];
  const auto stored = [&](int m, int n) HWY_ATTR { return state + m * lds + n * kLanes; };
  const auto now = [&](int m, int n) HWY_ATTR {
    return kFine ? hn::Add(s[m][n], hn::LoadU(d, stored(m, n))) : s[m][n];
  };
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) s[m][n] = kFine ? hn::Zero(d) : hn::LoadU(d, stored(m, n));
  }
  for (int64_t t = 0; t < length; ++t, q += ldk, k += ldk, v += ldp) {
    __builtin_prefetch(lines.at + lines.offsets[t], 0, 2);
    const auto read = [&]() HWY_ATTR {
      VF out[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) out[n] = hn::LoadU(d, from.data + t * from.ld + n * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const VF by = hn::Set(d, q[m]);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) out[n] = hn::MulAdd(by, now(m, n), out[n]);
      }
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        if (kLast) out[n] = hn::Mul(out[n], hn::Set(d, outputs_by[t]));
        if (kLast && bonus) {
          out[n] = hn::MulAdd(hn::LoadU(d, v + n * kLanes), hn::Set(d, own[t]), out[n]);
        }
        if (kLast) {
          store_output(out[n], to, t * to.ld + n * kLanes);
        } else {
          hn::StoreU(out[n], d, to.data + t * to.ld + n * kLanes);
        }
      }
    };
    if (kBefore) read();
    if (HWY_UNLIKELY(rescaled[t * groups] != 0)) {
      const float* by = b.rescale + t * b.factors + (b.channel ? m0 : 0);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const VF factor = hn::Set(d, by[b.channel ? m : 0]);
          s[m][n] = hn::Mul(s[m][n], factor);
          if (kFine) hn::StoreU(hn::Mul(hn::LoadU(d, stored(m, n)), factor), d, stored(m, n));
        }
      }
    }
    VF value[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) value[n] = hn::LoadU(d, v + n * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const VF by = hn::Set(d, k[m]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) s[m][n] = hn::MulAdd(by, value[n], s[m][n]);
    }
    if (!kBefore) read();
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) hn::StoreU(now(m, n), d, stored(m, n));
  }
}

template <int N, bool kBefore, bool kFine>
HWY_NOINLINE void sweep_panel(const Sweep& b, Rows out, float* state) {
  const Rows partial = {b.partial, b.ldp};
  const auto tile = [&](int64_t m0, auto rows) HWY_ATTR {
    constexpr int kTile = decltype(rows)::value;
    const Rows from = m0 == 0 ? Rows{b.nothing, 0} : partial;
    float* const at = state + m0 * b.lds;
    if (m0 + kTile == b.dk) {
      sweep_tile<kTile, N, kBefore, true, kFine>(b, m0, from, out, at, b.lines.next());
    } else {
      sweep_tile<kTile, N, kBefore, false, kFine>(b, m0, from, partial, at, b.lines.next());
    }
  };
  constexpr int kTall = kRows<N>;
  int64_t m0 = 0;
  for (; m0 + kTall <= b.dk; m0 += kTall) tile(m0, std::integral_constant<int, kTall>());
  for (; m0 < b.dk; ++m0) tile(m0, std::integral_constant<int, 1>());
}

// The state from the block's start to its end, and the outputs of its tokens.
[[maybe_unused]] static HWY_NOINLINE void sweep(const ScanProblem& s, const Sweep& b,
                                                ScanColumns columns, float* state) {
  const TokenReader& at = b.tokens;
  const bool one_decay = s.decay == Decay::kHead || s.decay == Decay::kToken;
  for_panels(b.dv, [&](int64_t n0, auto vectors) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    const int64_t first = columns.begin + n0, width = std::min(b.dv - n0, kVectors * kLanes);
    at.load_only(s.v, width, 1, b.v, b.ldp, first, one_decay ? b.write : nullptr);
    char* const to = const_cast<char*>(token_row(s.out, at.batch, at.begin, at.head, first));
    // Rows of whole vectors go to the caller's memory without a detour.
    const bool direct = s.out.dtype == HEED_FLOAT32 && width == kVectors * kLanes;
    const Rows out =
        direct ? Rows{reinterpret_cast<float*>(to), s.out.t, b.streams} : Rows{b.partial, b.ldp};
    const auto panel =
        b.before
            ? (b.fine ? sweep_panel<kVectors, true, true> : sweep_panel<kVectors, true, false>)
            : (b.fine ? sweep_panel<kVectors, false, true> : sweep_panel<kVectors, false, false>);
    panel(b, out, state + n0);
    if (direct) return;
    store_rows(b.partial, b.ldp, b.length, width, to, s.out.t * dtype_size(s.out.dtype),
               s.out.dtype);
  });
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HEED_SCAN_SWEEP_INL_H_
