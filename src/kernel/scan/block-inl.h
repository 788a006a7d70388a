// One block of tokens of the chunked scan: loads its tokens, turns decays into factors, forms the
// pairwise matrices, and carries the state over it. Forward passes with a correction and all
// backward passes use this.
//
// With E(i,j) = exp(b_i - b_j), b the sum of log decays inside the block, every pass is written for
//   rows  q (the read) and c (what the correction reads the state with: -k for delta, r for
//   general) columns  k (the write) and p (the correction's write, general only)
// so that (spec "Shared algorithms", E1 and E2; X are the corrected values)
//   delta:    X = V + Ce S0 + Mck W,             W = beta X,  O = Qe S0 + Mqk W
//   general:  X =     Ce S0 + Mck V + Mcp X,                  O = Qe S0 + Mqk V + Mqp X
//   S1 = diag(e^{b_L}) S0 + Ke^T (V or W) + Pe^T X
// where Qe, Ce carry the decay from the block's start and Ke, Pe the decay to its end. Rows that
// read before the decay (q with read before, c of the general form) use b_{i-1} and meet j < i
// only.
//
// Blocks have 16 tokens at most: on a CPU the pairwise work, which grows with the block, costs more
// than passing over the state again. Decays per channel: E is applied by multiplying a running row
// by exp(log_decay), and the sums run from one end of the block only, never as differences, so -inf
// gives an exact 0 and float32 keeps its relative precision; a whole block's decay is two floats
// (Init::kDecay). Scalar decays: sums in float64, kept as two floats, their differences masked by
// the number of resets so far; a whole block's decay goes into a scale beside the state
// (StoredState).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernel/scan/problem.h"
#include "kernel/simd_dtype.h"

#if defined(HEED_SCAN_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_SCAN_BLOCK_INL_H_
#undef HEED_SCAN_BLOCK_INL_H_
#else
#define HEED_SCAN_BLOCK_INL_H_
#endif

#include "kernel/scan/token-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

// With one decay for all channels a state is kept as a scale times what is stored: a decay changes
// the scale, reads multiply their queries by it, and writes divide their keys. Only a scale outside
// of [1 / room, room] goes into the stored numbers, as one float. What its rounding leaves stays in
// the scale: a rounded factor would drift from block to block.
struct StoredState {
  static constexpr double kRoom = 256, kNone = 0;

  double scale = 1;
  float factor = 1;  // what the stored numbers are multiplied by at the end of the block

  void decay(double total, double room) {
    scale *= total;
    factor = 1;
    if (scale * room >= 1 && scale <= room) return;
    factor = static_cast<float>(scale);
    scale = factor > 1e-30f ? scale / factor : 1;  // smaller floats lose digits; the state is gone
  }
  Start start() const { return factor == 1 ? Start(Init::kAdd) : Start(Init::kScale, &factor); }
};

struct Block : StateShape {
  // Sizes: `block` tokens at most, ldk and ldv row strides of key and value tiles, ldm of the
  // pairwise matrices (transposed: row j, column i).
  int64_t block, ldk, ldm;
  bool channel, correct, general, before;
  bool streams = false;  // outputs, where they go to the caller's memory at once

  int64_t length = 0;  // tokens in the current block
  TokenReader tokens;
  float *q, *k, *c, *p;            // rows [block + 4, ldk]; q holds scale q
  float *qe, *ke, *ce, *pe;        // with decays (the same tiles where there are none)
  float *log_decay, *hi, *lo, *a;  // per channel [block + 4, ldk]
  float* running;                  // per channel: a row of scratch, [ldk]
  float *mqk, *mck, *mqp, *mcp;    // [block, ldm], transposed
  float *v, *x, *w, *o;            // [block + 4, ldv]
  float *beta, *own, *bonus;       // [block], [block], [ldk]
  float* a_token;                  // e^{log decay}, where it is one for all channels: [block]
  // Entry i + 1 after token i, entry 0 before the first: b_i as a sum of two floats, and the number
  // of resets so far.
  float *sum_hi, *sum_lo, *resets;

  // Decay factors. With one decay a head they depend on the block's length alone and are kept for
  // every head of a task; all others use the first set.
  struct Factors {
    int64_t length = 0;          // of the block that they were computed for
    float *from_start, *to_end;  // e^{b_i}, row i + 1 (row 0: 1); e^{b_L - b_j}
    float *decay_hi, *decay_lo;  // e^{b_L} per row of the state, where it differs
    double total = 1;            // e^{b_L}, where it is one for all rows
    float *weight_q, *weight_c;  // E with its mask, [block, ldm]
  };
  // How the current head's state is kept where it takes its decays late (forward); absent where it
  // takes them at once.
  StoredState* stored = nullptr;

  // With `stored` the factors of one decay for all channels go to whatever has fewer numbers:
  // row i of what q reads is multiplied by read_factor[i]; and where values are narrower than keys,
  // they decay to the end of the block (into `we`) in place of the keys.
  float *read_factor, *we;
  float write = 1;  // what rows that are written are multiplied by

  bool factors_by_head;
  Factors factors[kScanHeads];
  Factors* factors_now = factors;
  float *from_start, *to_end, *decay_hi, *decay_lo, *weight_q, *weight_c;  // of factors_now

  void use_head(int64_t i) {
    factors_now = &factors[factors_by_head ? i : 0];
    from_start = factors_now->from_start;
    to_end = factors_now->to_end;
    decay_hi = factors_now->decay_hi;
    decay_lo = factors_now->decay_lo;
    weight_q = factors_now->weight_q;
    weight_c = factors_now->weight_c;
  }

  bool values_decay() const { return stored != nullptr && we != nullptr; }

  static int64_t most(const ScanProblem& s) { return std::min<int64_t>(s.chunk, 16); }

  Block(const ScanProblem& s, int64_t width, int64_t heads, Arena& arena)
      : StateShape(s.dk, width) {
    block = most(s);
    ldk = pad_to(dk, 16);
    ldm = pad_to(block + 4, 16);
    channel = s.decay == Decay::kChannel;
    correct = s.correction != Correction::kNone;
    general = s.correction == Correction::kGeneral;
    before = s.read_before();
    const int64_t rows = block + 4, keys = rows * ldk, values = rows * ldv,
                  square = (block + 4) * ldm;
    auto when = [&](bool used, int64_t floats) { return used ? arena.take(floats) : nullptr; };
    const bool decays = s.decay != Decay::kNone;
    q = arena.take(keys);
    k = arena.take(keys);
    c = when(correct, keys);
    p = when(general, keys);
    qe = decays ? arena.take(keys) : q;
    ke = decays ? arena.take(keys) : k;
    ce = decays ? when(correct, keys) : c;
    pe = decays ? when(general, keys) : p;
    log_decay = when(channel, keys);
    hi = when(channel, keys);
    lo = when(channel, keys);
    a = when(channel, keys);
    factors_by_head = s.decay == Decay::kHead;
    for (int64_t i = 0; i < (factors_by_head ? heads : 1); ++i) {
      Factors& f = factors[i];
      f.from_start = channel ? arena.take(keys) : arena.take(rows);
      f.to_end = channel ? arena.take(keys) : arena.take(rows);
      f.decay_hi = when(channel, ldk);
      f.decay_lo = when(channel, ldk);
      f.weight_q = when(!channel, square);
      f.weight_c = when(!channel && correct, square);
    }
    use_head(0);
    running = when(channel, ldk);
    mqk = arena.take(square);
    mck = when(correct, square);
    mqp = when(general, square);
    mcp = when(general, square);
    v = arena.take(values);
    x = when(correct, values);
    w = general || !correct ? (general ? x : v) : arena.take(values);
    o = arena.take(values);
    we = when(decays && !channel && !general && s.dv < s.dk, values);  // whatever the width
    read_factor = when(decays && !channel, rows);
    beta = arena.take(rows);
    own = arena.take(rows);
    bonus = arena.take(ldk);
    a_token = arena.take(rows + 16);
    for (float** each : {&sum_hi, &sum_lo, &resets}) *each = arena.take(rows + 2 * 16);
  }
};

// exp(b - from) for kLanes entries of b (see sum_hi) from the i-th on; 0 across a reset.
HWY_INLINE VF decay_since(const Block& b, int64_t i, VF from_hi, VF from_lo, VF from_resets) {
  const DF d;
  const VF hi = hn::Sub(hn::LoadU(d, b.sum_hi + i), from_hi);
  const VF lo = hn::Sub(hn::LoadU(d, b.sum_lo + i), from_lo);
  const VF crossed = hn::Sub(hn::LoadU(d, b.resets + i), from_resets);
  return exp_of(hn::NegMulAdd(crossed, hn::Set(d, 1e30f), hn::Add(hi, lo)));
}

// weight(j, i) = E(i, j) where a row that reads after (before) its decay meets column j, else 0: a
// running product from the last column on.
[[maybe_unused]] static HWY_NOINLINE void pair_weights(const Block& b, int64_t l, bool before,
                                                       bool strict, float* weight) {
  const DF d;
  const VF end = hn::Set(d, static_cast<float>(l)), one = hn::Set(d, 1), zero = hn::Zero(d);
  for (int64_t i = 0; i < b.ldm; i += kLanes) {
    const VF row = hn::Iota(d, static_cast<float>(i));
    VF product = zero;
    for (int64_t j = l - 1; j >= 0; --j) {
      // A row that reads before its decay sees what the row above it sees after.
      const VF first = hn::Set(d, static_cast<float>(before ? j + 1 : j));
      if (j + 1 < l) product = hn::Mul(product, hn::Set(d, b.a_token[j + 1]));
      product = hn::IfThenElse(hn::Eq(row, first), one, product);
      const auto inside = hn::Lt(row, end);
      const auto met = strict && !before ? hn::Gt(row, first) : hn::Ge(row, first);
      hn::StoreU(hn::IfThenElseZero(hn::And(met, inside), product), d, weight + j * b.ldm + i);
    }
  }
}

// Sums and factors of one decay per token (or none): fills the sums, from_start, to_end, total.
[[maybe_unused]] static HWY_NOINLINE void scalar_factors(const ScanProblem& s, const Block& b,
                                                         int64_t batch, int64_t t, int64_t h,
                                                         int64_t l) {
  const DF d;
  double sum = 0;
  float resets = 0;
  b.sum_hi[0] = b.sum_lo[0] = b.resets[0] = 0;
  for (int64_t i = 0; i < l; ++i) {
    const float log_decay =
        s.decay == Decay::kNone ? 0.0f : token_scalar(s.log_decay, batch, t + i, h);
    if (log_decay == -std::numeric_limits<float>::infinity()) {
      resets += 1;
    } else {
      sum += log_decay;
    }
    b.sum_hi[i + 1] = static_cast<float>(sum);
    b.sum_lo[i + 1] = static_cast<float>(sum - b.sum_hi[i + 1]);
    b.resets[i + 1] = resets;
    b.a_token[i] = log_decay;
  }
  for (int64_t i = 0; i < l; i += kLanes) {
    hn::StoreU(exp_of(hn::LoadU(d, b.a_token + i)), d, b.a_token + i);
  }
  const VF zero = hn::Zero(d), hi = hn::Set(d, b.sum_hi[l]), lo = hn::Set(d, b.sum_lo[l]);
  const VF all = hn::Set(d, resets), huge = hn::Set(d, 1e30f);
  for (int64_t i = 0; i <= l; i += kLanes) {
    hn::StoreU(decay_since(b, i, zero, zero, zero), d, b.from_start + i);
    const VF left = hn::Add(hn::Sub(hi, hn::LoadU(d, b.sum_hi + i + 1)),
                            hn::Sub(lo, hn::LoadU(d, b.sum_lo + i + 1)));
    const VF crossed = hn::Sub(all, hn::LoadU(d, b.resets + i + 1));
    hn::StoreU(exp_of(hn::NegMulAdd(crossed, huge, left)), d, b.to_end + i);
  }
  b.factors_now->total = resets > 0 ? 0.0 : std::exp(sum);
}

// Row i times factor[i] and `scale`.
[[maybe_unused]] static HWY_NOINLINE void scale_rows(const float* from, const float* factor,
                                                     float scale, int64_t rows, int64_t ld,
                                                     float* to) {
  const DF d;
  for (int64_t i = 0; i < rows; ++i) {
    const VF f = hn::Set(d, factor[i] * scale);
    for (int64_t e = 0; e < ld; e += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, from + i * ld + e), f), d, to + i * ld + e);
    }
  }
}

// Per channel: factors from the start and to the end of the block, and the tiles that carry them.
[[maybe_unused]] static HWY_NOINLINE void channel_factors(const Block& b, int64_t l) {
  const DF d;
  const int64_t ld = b.ldk;
  const int64_t q_row = b.before ? 0 : ld, c_row = b.general ? 0 : ld;
  for (int64_t e = 0; e < ld; e += kLanes) {
    VF product = hn::Set(d, 1), sum = hn::Zero(d);
    hn::StoreU(product, d, b.from_start + e);
    for (int64_t i = 0; i < l; ++i) {
      const int64_t at = i * ld + e;
      const VF x = hn::LoadU(d, b.log_decay + at);
      const TwoFloats factor = exp_two(x);
      hn::StoreU(factor.hi, d, b.hi + at);
      hn::StoreU(factor.lo, d, b.lo + at);
      hn::StoreU(hn::Add(factor.hi, factor.lo), d, b.a + at);
      product = hn::MulAdd(product, factor.hi, hn::Mul(product, factor.lo));
      hn::StoreU(product, d, b.from_start + at + ld);
      sum = hn::Add(sum, x);
      hn::StoreU(hn::Mul(hn::LoadU(d, b.q + at), hn::LoadU(d, b.from_start + at + q_row)), d,
                 b.qe + at);
      if (b.correct) {
        hn::StoreU(hn::Mul(hn::LoadU(d, b.c + at), hn::LoadU(d, b.from_start + at + c_row)), d,
                   b.ce + at);
      }
    }
    const TwoFloats total = exp_two(sum);
    hn::StoreU(total.hi, d, b.decay_hi + e);
    hn::StoreU(total.lo, d, b.decay_lo + e);
    product = hn::Set(d, 1);
    for (int64_t j = l - 1; j >= 0; --j) {
      const int64_t at = j * ld + e;
      hn::StoreU(product, d, b.to_end + at);
      hn::StoreU(hn::Mul(hn::LoadU(d, b.k + at), product), d, b.ke + at);
      if (b.general) hn::StoreU(hn::Mul(hn::LoadU(d, b.p + at), product), d, b.pe + at);
      product =
          hn::MulAdd(product, hn::LoadU(d, b.hi + at), hn::Mul(product, hn::LoadU(d, b.lo + at)));
    }
  }
}

// m(j, i) = sum_d row_id E(i,j)_d column_jd with a decay per channel. The column is multiplied by
// one token's decay after the other, four rows at a time; `reaches` says which rows read before it.
template <bool kTwo>
HWY_NOINLINE void channel_pairs(const Block& b, int64_t l, const float* column, bool q_before,
                                bool c_before, float* mq, float* mc) {
  const DF d;
  const int64_t ld = b.ldk;
  float* running = b.running;
  for (int64_t j = 0; j < l; ++j) {
    for (int64_t e = 0; e < ld; e += kLanes) {
      hn::StoreU(hn::LoadU(d, column + j * ld + e), d, running + e);
    }
    for (int64_t i0 = j; i0 < l; i0 += 4) {
      VF sq[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
      VF sc[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
      for (int64_t e = 0; e < ld; e += kLanes) {
        VF y = hn::LoadU(d, running + e);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const int64_t at = (i0 + i) * ld + e;
          const VF before = y;
          if (i0 + i > j) y = hn::Mul(y, hn::LoadU(d, b.a + at));
          sq[i] = hn::MulAdd(hn::LoadU(d, b.q + at), q_before ? before : y, sq[i]);
          if (kTwo) sc[i] = hn::MulAdd(hn::LoadU(d, b.c + at), c_before ? before : y, sc[i]);
        }
        hn::StoreU(y, d, running + e);
      }
      store_sums(sq[0], sq[1], sq[2], sq[3], mq + j * b.ldm + i0);
      if (kTwo) store_sums(sc[0], sc[1], sc[2], sc[3], mc + j * b.ldm + i0);
    }
    for (int64_t i = 0; i < j; ++i) {
      mq[j * b.ldm + i] = 0;
      if (kTwo) mc[j * b.ldm + i] = 0;
    }
    if (q_before) mq[j * b.ldm + j] = 0;
    if (kTwo) mc[j * b.ldm + j] = 0;  // a correction reads what earlier tokens wrote
  }
}

// m(j, i) = column_j . row_i, times weight(j, i) if there is one, for pairs i >= j and a few more:
// a few columns by four rows at a time in registers. What is left out of m is 0 and stays so. Both
// tiles have readable rows behind the last, and m has room for their pairs.
[[maybe_unused]] static HWY_NOINLINE void dot_pairs(const Block& b, int64_t l, const float* row,
                                                    const float* column, const float* weight,
                                                    float* m) {
  const DF d;
  constexpr int kColumns = kLanes >= 16 ? 4 : 2;  // as registers allow
  const int64_t ld = b.ldk;
  for (int64_t j0 = 0; j0 < l; j0 += kColumns) {
    for (int64_t i0 = j0 / 4 * 4; i0 < l; i0 += 4) {
      VF acc[kColumns][4];
      set_zero(acc);
      for (int64_t e = 0; e < ld; e += kLanes) {
        VF right[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) right[i] = hn::LoadU(d, row + (i0 + i) * ld + e);
#pragma GCC unroll 4
        for (int j = 0; j < kColumns; ++j) {
          const VF left = hn::LoadU(d, column + (j0 + j) * ld + e);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) acc[j][i] = hn::MulAdd(left, right[i], acc[j][i]);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) {
        const int64_t at = (j0 + j) * b.ldm + i0;
        store_sums(acc[j][0], acc[j][1], acc[j][2], acc[j][3], m + at,
                   weight == nullptr ? nullptr : weight + at);
      }
    }
  }
}

// Loads tokens [t, t + l) and prepares everything that does not depend on the state; with
// `state_only` it may leave out what only the outputs need.
[[maybe_unused]] static HWY_NOINLINE void prepare_block(const ScanProblem& s, Block& b,
                                                        int64_t batch, int64_t t, int64_t h,
                                                        int64_t l, ScanColumns columns,
                                                        bool state_only = false) {
  const DF d;
  TokenReader& read_from = b.tokens;
  read_from.start(batch, t, h, l);
  b.length = l;
  if (!state_only) {
    read_from.load(s.q, b.dk, s.scale, b.q, b.ldk);
    if (s.out && !b.streams) read_from.fetch_ahead(s.out, b.dv, columns.begin, true);
  }
  read_from.load(s.k, b.dk, 1, b.k, b.ldk);
  read_from.load(s.v, b.dv, 1, b.v, b.ldv, columns.begin);
  if (b.general) {
    read_from.load(s.p, b.dk, 1, b.p, b.ldk);
    read_from.load(s.r, b.dk, 1, b.c, b.ldk);
  } else if (b.correct) {
    read_from.load_only(s.k, b.dk, -1, b.c, b.ldk);
    for (int64_t i = 0; i < l; ++i) b.beta[i] = token_scalar(s.beta, batch, t + i, h);
  }
  if (b.channel) read_from.load(s.log_decay, b.dk, 1, b.log_decay, b.ldk);
  // The products with the state that are to come.
  b.tokens.fetch.spread(l * b.dk * b.ldv / kLanes);
  if (b.channel) {
    channel_factors(b, l);
    if (b.correct) {
      channel_pairs<true>(b, l, b.k, b.before, b.general, b.mqk, b.mck);
      if (b.general) channel_pairs<true>(b, l, b.p, b.before, true, b.mqp, b.mcp);
    } else if (!state_only) {
      channel_pairs<false>(b, l, b.k, b.before, false, b.mqk, nullptr);
    }
  } else {
    // Without a decay per token the factors of a block depend on its length alone.
    if (s.decay == Decay::kToken || b.factors_now->length != l) {
      scalar_factors(s, b, batch, t, h, l);
      pair_weights(b, l, b.before, false, b.weight_q);
      if (b.correct && b.general == b.before) {
        std::copy_n(b.weight_q, l * b.ldm, b.weight_c);
        for (int64_t j = 0; j < l; ++j) b.weight_c[j * b.ldm + j] = 0;
      } else if (b.correct) {
        pair_weights(b, l, b.general, true, b.weight_c);
      }
      b.factors_now->length = l;
    }
    if (s.decay != Decay::kNone) {
      float read = 1, write = 1;
      const float* reading = b.from_start + (b.before ? 0 : 1);
      if (b.stored != nullptr) {
        read = static_cast<float>(b.stored->scale);
        b.stored->decay(b.factors_now->total, StoredState::kRoom);
        write = static_cast<float>(1 / b.stored->scale);
        for (int64_t i = 0; i < l; i += kLanes) {
          hn::StoreU(hn::Mul(hn::LoadU(d, reading + i), hn::Set(d, read)), d, b.read_factor + i);
        }
      } else if (!state_only) {
        scale_rows(b.q, reading, 1, l, b.ldk, b.qe);
      }
      b.write = write;
      if (!b.values_decay()) scale_rows(b.k, b.to_end, write, l, b.ldk, b.ke);
      if (b.correct) scale_rows(b.c, b.from_start + (b.general ? 0 : 1), read, l, b.ldk, b.ce);
      if (b.general) scale_rows(b.p, b.to_end, write, l, b.ldk, b.pe);
    }
    if (!state_only) {
      dot_pairs(b, l, b.q, b.k, b.weight_q, b.mqk);
      if (b.general) dot_pairs(b, l, b.q, b.p, b.weight_q, b.mqp);
    }
    if (b.correct) {
      dot_pairs(b, l, b.c, b.k, b.weight_c, b.mck);
      if (b.general) dot_pairs(b, l, b.c, b.p, b.weight_c, b.mcp);
    }
  }
  if (s.bonus && !state_only) {
    load_row(s.bonus.data + h * s.bonus.h * 4, HEED_FLOAT32, b.dk, 1, b.bonus);
    own_reads(b.q, b.k, b.bonus, l, b.ldk, b.own);
  }
}

// N vectors of every row of solve, side by side: a row waits for the one above it.
template <int N>
HWY_INLINE void solve_panel(const Block& b, const float* m, int64_t e) {
  const DF d;
  for (int64_t i = 0; i < b.length; ++i) {
    float* x = b.x + i * b.ldv + e;
    float* w = b.w + i * b.ldv + e;
    VF sum[2][N];  // over even and odd j
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      sum[0][n] = hn::LoadU(d, x + n * kLanes);
      sum[1][n] = hn::Zero(d);
    }
    const auto add = [&](int64_t j, VF(&to)[N]) HWY_ATTR {
      const VF factor = hn::Set(d, m[j * b.ldm + i]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        to[n] = hn::MulAdd(factor, hn::LoadU(d, b.w + j * b.ldv + e + n * kLanes), to[n]);
      }
    };
    int64_t j = 0;
    for (; j + 2 <= i; j += 2) {
      add(j, sum[0]);
      add(j + 1, sum[1]);
    }
    if (j < i) add(j, sum[0]);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const VF whole = hn::Add(sum[0][n], sum[1][n]);
      hn::StoreU(whole, d, x + n * kLanes);
      if (!b.general) hn::StoreU(hn::Mul(whole, hn::Set(d, b.beta[i])), d, w + n * kLanes);
    }
  }
}

// X_i += sum_{j<i} m(j, i) W_j with W_j = beta_j X_j (delta) or X_j (general), in place.
[[maybe_unused]] static HWY_NOINLINE void solve(const Block& b) {
  for_panels(b.ldv, [&](int64_t e, auto vectors) HWY_ATTR {
    solve_panel<decltype(vectors)::value>(b, b.general ? b.mcp : b.mck, e);
  });
}

// The corrected values of a prepared block from the state at its start.
[[maybe_unused]] static HWY_NOINLINE void correct_values(const Block& b, const float* state) {
  if (!b.correct) return;
  const int64_t l = b.length;
  if (!b.general) std::copy_n(b.v, l * b.ldv, b.x);
  product(l, b.dv, b.dk, {b.ce, b.ldk, 1}, state, b.lds, b.x, b.ldv,
          b.general ? Init::kZero : Init::kAdd);
  if (b.general) {
    product(l, b.dv, l, {b.mck, 1, b.ldm}, b.v, b.ldv, b.x, b.ldv, Init::kAdd, Shape::kLower);
  }
  solve(b);
}

// M rows and N vectors of O from the state at the block's start and the corrected values.
template <int M, int N>
HWY_INLINE void read_tile(const Block& b, const float* state, bool bonus, int64_t m0, int64_t n0,
                          Rows out) {
  const DF d;
  VF acc[M][N];
  set_zero(acc);
  if (b.read_factor != nullptr) {
    multiply_add(0, b.dk, b.q + m0 * b.ldk, b.ldk, 1, state + n0, b.lds, acc);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const VF factor = hn::Set(d, b.read_factor[m0 + m]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = hn::Mul(acc[m][n], factor);
    }
  } else {
    multiply_add(0, b.dk, b.qe + m0 * b.ldk, b.ldk, 1, state + n0, b.lds, acc);
  }
  const int64_t pairs = std::min(b.length, m0 + M);  // a row meets no later column
  const float* written = b.general ? b.v : b.w;
  multiply_add(0, pairs, b.mqk + m0, 1, b.ldm, written + n0, b.ldv, acc);
  if (b.general) multiply_add(0, pairs, b.mqp + m0, 1, b.ldm, b.x + n0, b.ldv, acc);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      if (bonus) {
        const VF value = hn::LoadU(d, b.v + (m0 + m) * b.ldv + n0 + n * kLanes);
        acc[m][n] = hn::MulAdd(hn::Set(d, b.own[m0 + m]), value, acc[m][n]);
      }
      store_output(acc[m][n], out, (m0 + m) * out.ld + n0 + n * kLanes);
    }
  }
}

// O of a prepared block, in rows of whole vectors.
[[maybe_unused]] static HWY_NOINLINE void read_block(const Block& b, const float* state, bool bonus,
                                                     Rows out) {
  for_panels(b.dv, [&](int64_t n0, auto vectors) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value, kTile = std::min(kRows<kVectors>, 8);
    int64_t m0 = 0;
    for (; m0 + kTile <= b.length; m0 += kTile) {
      read_tile<kTile, kVectors>(b, state, bonus, m0, n0, out);
    }
    for (; m0 < b.length; ++m0) read_tile<1, kVectors>(b, state, bonus, m0, n0, out);
  });
}

// How the state at the block's end starts from the one at its start.
[[maybe_unused]] static Start decayed(const Block& b, bool decays, const StoredState& stored) {
  if (!decays) return Init::kAdd;
  if (b.channel) return {Init::kDecay, b.decay_hi, b.decay_lo};
  return stored.start();
}

// The state at the block's end; `start` says from what, and where that lies if not in `state`.
[[maybe_unused]] static HWY_NOINLINE void advance_state(const Block& b, const Start& start,
                                                        float* state) {
  const float* written = b.general ? b.v : b.w;
  if (b.values_decay()) {
    scale_rows(written, b.to_end, b.write, b.length, b.ldv, b.we);
    written = b.we;
  }
  product(b.dk, b.dv, b.length, {b.values_decay() ? b.k : b.ke, 1, b.ldk}, written, b.ldv, state,
          b.lds, start, Shape::kFull, &b.tokens.fetch, b.general ? Second{b.pe, b.x} : Second{});
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HEED_SCAN_BLOCK_INL_H_
