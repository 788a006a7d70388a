// scan_backward: the adjoint of the block equations of block-inl.h, over blocks from the last to
// the first. States at block starts are computed again: a first pass keeps one state a segment of
// about sqrt(number of blocks) blocks, a second one the states inside the segment at hand. What a
// correction made of the values is kept too, of all tokens where that is little memory, else of the
// segment's.
//
// With dX the gradient at the corrected values, and D the gradient of a pairwise matrix M
// (D_ij = dO_i . value_j or dX_i . value_j):
//   dW or dV = Mq^T dO + Ke dS1 (+ Mc^T dX);  dQe = dO S0^T;  dCe = dX S0^T;  dKe = value dS1^T
//   dS0 = diag(e^{b_L}) dS1 + Qe^T dO + Ce^T dX
// The gradient at the log decay of token t gathers every product that crosses t: pairs j < t <= i,
// reads i >= t, writes j < t, and S0 . dS1. It is summed from such products alone, never as a
// difference of larger sums; a reset makes each of them 0.
#include <hwy/cache_control.h>

#include <memory>
#include <vector>

#include "kernel/parallel.h"
#include "kernel/scan/problem.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/scan/backward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/scan/block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

// Gradient tiles of one block; names as in Block.
struct BlockGrads {
  float *o, *x, *v;              // dO, dX, dV or dW: [block + 4, ldv]
  float *turned_o, *turned_x;    // dO, dX transposed: [ldv, ldm]
  float* turned_value;           // V, W or X transposed: [ldv, ldm]
  float* turned_key;             // a transposed key gradient: [ldk, ldm]
  float *mqk, *mck, *mqp, *mcp;  // [block, ldm]
  float *q, *k, *c, *p;          // [block + 4, ldk]
  float* decayed;                // one key gradient before its decay factor
  float* decay;                  // log decay, per channel [block + 4, ldk] or [block + 4]
  float* beta;
  StoredState stored;  // dS

  BlockGrads(const Block& b, Arena& arena) {
    const int64_t keys = (b.block + 4) * b.ldk, values = (b.block + 4) * b.ldv;
    for (float** tile : {&o, &x, &v}) *tile = arena.take(values);
    for (float** tile : {&turned_o, &turned_x, &turned_value}) *tile = arena.take(b.ldv * b.ldm);
    turned_key = arena.take(b.ldk * b.ldm);
    for (float** tile : {&mqk, &mck, &mqp, &mcp}) *tile = arena.take(b.block * b.ldm);
    for (float** tile : {&q, &k, &c, &p, &decayed, &decay}) *tile = arena.take(keys);
    beta = arena.take(b.block + 4);
  }
};

// The states and corrected values that one task keeps, and sums over its tokens.
struct Kept {
  static constexpr int64_t kMostValues = 4 << 20;  // floats: 16 MB a worker

  float *state, *grad_state;
  float *starts, *inside;  // states at the start of segments, and of the blocks of one
  float* values;           // X of all tokens, or of one segment: [tokens, ldv]
  bool all_values;
  double* bonus;

  Kept(const Block& b, int64_t blocks, int64_t per_segment, Arena& arena) {
    state = arena.take(b.floats());
    grad_state = arena.take(b.floats());
    starts = arena.take((blocks + per_segment - 1) / per_segment * b.floats());
    inside = arena.take(per_segment * b.floats());
    const int64_t a_block = b.block * b.ldv;
    all_values = blocks * a_block <= kMostValues;
    values = arena.take(b.correct ? (all_values ? blocks : per_segment) * a_block + 4 * b.ldv : 0);
    bonus = reinterpret_cast<double*>(arena.take(2 * b.ldk));
  }
};

HWY_NOINLINE int64_t blocks_per_segment(int64_t blocks) {
  int64_t n = 8;
  while (n * n < blocks) ++n;
  return n;
}

int64_t backward_scratch(const ScanProblem& s, int64_t width, int64_t longest) {
  Arena arena(nullptr);
  const Block b(s, width, 1, arena);
  const BlockGrads g(b, arena);
  const int64_t blocks = (longest + b.block - 1) / b.block;
  const int64_t per_segment = blocks_per_segment(blocks);
  const Kept kept(b, blocks, per_segment, arena);
  return arena.used();
}

// m(j, i) = value_j . row_i for the pairs with i >= j (or i > j), rows given transposed.
HWY_NOINLINE void pair_grads(const Block& b, const float* value, const float* turned, bool strict,
                             float* m) {
  const int64_t l = b.length;
  product(l, l, b.dv, {value, b.ldv, 1}, turned, b.ldm, m, b.ldm, Init::kZero);
  for (int64_t j = 0; j < l; ++j) std::fill_n(m + j * b.ldm, j + (strict ? 1 : 0), 0.0f);
}

// to[i] = (matrix value_i) for the tokens i of the block, values given transposed; `matrix` is a
// state.
HWY_NOINLINE void state_times(const Block& b, const float* matrix, const float* turned_value,
                              float* turned_key, float* to) {
  product(b.dk, b.length, b.dv, {matrix, b.lds, 1}, turned_value, b.ldm, turned_key, b.ldm,
          Init::kZero);
  // Rows of keys beyond dk stay 0: they were never written.
  transpose(b.ldk, b.length, turned_key, b.ldm, to, b.ldk);
}

// dX from dO and the gradient of the state at the block's end, by substitution from the last token,
// and dV. For delta b.w = beta X was written and g.v first gathers its gradient.
HWY_NOINLINE void value_grads(const Block& b, const float* grad_state, BlockGrads& g) {
  const DF d;
  const int64_t l = b.length;
  auto from_reads_and_end = [&](const float* m, const float* key, float* to) {
    product(l, b.dv, l, {m, b.ldm, 1}, g.o, b.ldv, to, b.ldv, Init::kZero, Shape::kUpper);
    product(l, b.dv, b.dk, {key, b.ldk, 1}, grad_state, b.lds, to, b.ldv, Init::kAdd, Shape::kFull,
            &b.tokens.fetch);
  };
  from_reads_and_end(b.mqk, b.ke, g.v);
  if (!b.correct) return;
  if (b.general) from_reads_and_end(b.mqp, b.pe, g.x);
  const float* m = b.general ? b.mcp : b.mck;
  float* gathered = b.general ? g.x : g.v;
  // A row waits for those below it: a panel of vectors side by side.
  for_panels(b.ldv, [&](int64_t e, auto vectors) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    for (int64_t j = l - 1; j >= 0; --j) {
      float* const to = gathered + j * b.ldv + e;
      VF sum[1][kVectors];
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sum[0][n] = hn::LoadU(d, to + n * kLanes);
      multiply_add(j + 1, l, m + j * b.ldm, 0, 1, g.x + e, b.ldv, sum);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) {
        hn::StoreU(sum[0][n], d, to + n * kLanes);
        if (b.general) continue;
        hn::StoreU(hn::Mul(sum[0][n], hn::Set(d, b.beta[j])), d, g.x + j * b.ldv + e + n * kLanes);
      }
    }
  });
  if (b.general) {
    product(l, b.dv, l, {b.mck, b.ldm, 1}, g.x, b.ldv, g.v, b.ldv, Init::kAdd, Shape::kUpper);
    return;
  }
  for (int64_t i = 0; i < l; ++i) {
    g.beta[i] = row_dot(g.v + i * b.ldv, b.x + i * b.ldv, b.ldv);
  }
  std::copy_n(g.x, l * b.ldv, g.v);
}

// Pairs with a decay per channel: adds to the gradients of rows, column and log decay. The forward
// recursion w_i = a_i w_{i-1} from w_j = column_j is run again and then backwards.
template <bool kTwo>
HWY_NOINLINE void channel_pair_grads(const Block& b, const float* column, const float* mq,
                                     const float* mc, bool c_before, BlockGrads& g,
                                     float* grad_column) {
  const DF d;
  const int64_t l = b.length, ld = b.ldk;
  VF w[16];
  for (int64_t e = 0; e < ld; e += kLanes) {
    for (int64_t j = 0; j < l; ++j) {
      const float* dq = mq + j * b.ldm;
      const float* dc = kTwo ? mc + j * b.ldm : nullptr;
      auto add = [&](float* to, float factor, VF x) HWY_ATTR {
        hn::StoreU(hn::MulAdd(hn::Set(d, factor), x, hn::LoadU(d, to)), d, to);
      };
      w[j] = hn::LoadU(d, column + j * ld + e);
      for (int64_t i = j; i < l; ++i) {
        if (i > j) w[i] = hn::Mul(w[i - 1], hn::LoadU(d, b.a + i * ld + e));
        if (i > j || !b.before) add(g.q + i * ld + e, dq[i], w[b.before ? i - 1 : i]);
        if (kTwo && i > j) add(g.c + i * ld + e, dc[i], w[c_before ? i - 1 : i]);
      }
      VF back = hn::Zero(d);  // gradient at w_i
      for (int64_t i = l - 1; i >= j; --i) {
        const int64_t at = i * ld + e;
        const VF q = hn::LoadU(d, b.q + at);
        if (!b.before) back = hn::MulAdd(hn::Set(d, dq[i]), q, back);
        if (kTwo && !c_before) back = hn::MulAdd(hn::Set(d, dc[i]), hn::LoadU(d, b.c + at), back);
        if (i == j) break;
        hn::StoreU(hn::MulAdd(back, w[i], hn::LoadU(d, g.decay + at)), d, g.decay + at);
        back = hn::Mul(back, hn::LoadU(d, b.a + at));
        if (b.before) back = hn::MulAdd(hn::Set(d, dq[i]), q, back);
        if (kTwo && c_before) back = hn::MulAdd(hn::Set(d, dc[i]), hn::LoadU(d, b.c + at), back);
      }
      float* to = grad_column + j * ld + e;
      hn::StoreU(hn::Add(back, hn::LoadU(d, to)), d, to);
    }
  }
}

// The same with one decay a token. m is the matrix of the forward pass, grad its gradient
// (changed).
HWY_NOINLINE void scalar_pair_grads(const Block& b, const float* row, const float* column,
                                    const float* weight, const float* m, bool before, float* grad,
                                    float* grad_row, float* grad_column, float* grad_decay) {
  const DF d;
  const int64_t l = b.length;
  if (grad_decay != nullptr) {
    // Row i crosses t for its columns j < t: t <= i where it reads after, t < i before its decay.
    for (int64_t i = 0; i < l; ++i) {
      float sum = 0;
      for (int64_t t = 1; t < (before ? i : i + 1); ++t) {
        sum += grad[(t - 1) * b.ldm + i] * m[(t - 1) * b.ldm + i];
        grad_decay[t] += sum;
      }
    }
  }
  for (int64_t j = 0; j < l; ++j) {
    for (int64_t i = 0; i < b.ldm; i += kLanes) {
      float* at = grad + j * b.ldm + i;
      hn::StoreU(hn::Mul(hn::LoadU(d, at), hn::LoadU(d, weight + j * b.ldm + i)), d, at);
    }
  }
  product(l, b.dk, l, {grad, 1, b.ldm}, column, b.ldk, grad_row, b.ldk, Init::kAdd, Shape::kLower);
  product(l, b.dk, l, {grad, b.ldm, 1}, row, b.ldk, grad_column, b.ldk, Init::kAdd, Shape::kUpper);
}

// A key gradient through the decay from the block's start (rows) or to its end (columns): adds
// decayed . factor to `to`, and what crosses each token to the gradient of the log decay.
//   rows: `reach` = 1 where the row reads after its decay, 0 before.
HWY_NOINLINE void through_factor(const Block& b, const float* tile, bool row, int64_t reach,
                                 bool decays, BlockGrads& g, float* to) {
  const DF d;
  const int64_t l = b.length, ld = b.ldk;
  const float* factor = row ? b.from_start + (b.channel ? reach * ld : reach) : b.to_end;
  for (int64_t i = 0; i < l; ++i) {
    for (int64_t e = 0; e < ld; e += kLanes) {
      const VF f = b.channel ? hn::LoadU(d, factor + i * ld + e) : hn::Set(d, factor[i]);
      float* at = to + i * ld + e;
      hn::StoreU(hn::MulAdd(hn::LoadU(d, g.decayed + i * ld + e), f, hn::LoadU(d, at)), d, at);
    }
  }
  if (!decays) return;
  if (b.channel) {
    for (int64_t e = 0; e < ld; e += kLanes) {
      VF sum = hn::Zero(d);
      auto gather = [&](int64_t i) HWY_ATTR {
        sum =
            hn::MulAdd(hn::LoadU(d, tile + i * ld + e), hn::LoadU(d, g.decayed + i * ld + e), sum);
      };
      auto spread = [&](int64_t t) HWY_ATTR {
        float* at = g.decay + t * ld + e;
        hn::StoreU(hn::Add(sum, hn::LoadU(d, at)), d, at);
      };
      if (row) {
        for (int64_t t = l - 1; t >= 0; --t) {
          if (reach == 1) gather(t);
          spread(t);
          if (reach == 0) gather(t);
        }
      } else {
        for (int64_t t = 0; t < l; ++t) {
          spread(t);
          gather(t);
        }
      }
    }
    return;
  }
  float sum = 0;
  auto gather = [&](int64_t i) { sum += row_dot(tile + i * ld, g.decayed + i * ld, ld); };
  if (row) {
    for (int64_t t = l - 1; t >= 0; --t) {
      if (reach == 1) gather(t);
      g.decay[t] += sum;
      if (reach == 0) gather(t);
    }
  } else {
    for (int64_t t = 0; t < l; ++t) {
      g.decay[t] += sum;
      gather(t);
    }
  }
}

// What the state carried over the whole block gives every log decay in it.
HWY_NOINLINE void carried_decay_grads(const Block& b, const float* state, const float* grad_state,
                                      BlockGrads& g) {
  float sum = 0;
  const float total = static_cast<float>(b.factors_now->total);
  for (int64_t i = 0; i < b.dk; ++i) {
    const float decay = b.channel ? b.decay_hi[i] + b.decay_lo[i] : total;
    const float carried = row_dot(state + i * b.lds, grad_state + i * b.lds, b.ldv) * decay;
    sum += carried;
    if (b.channel) {
      for (int64_t t = 0; t < b.length; ++t) g.decay[t * b.ldk + i] += carried;
    }
  }
  if (!b.channel) {
    for (int64_t t = 0; t < b.length; ++t) g.decay[t] += sum;
  }
}

// What the pairs of tokens that the block's sums were made of get from the values, as matrices over
// pairs (g.mqk, ...): queries with keys and with p, corrections likewise.
HWY_NOINLINE void pairs_from_values(const Block& b, const float* value, BlockGrads& g) {
  transpose(b.length, b.ldv, g.o, b.ldv, g.turned_o, b.ldm);
  pair_grads(b, value, g.turned_o, b.before, g.mqk);
  if (b.general) pair_grads(b, b.x, g.turned_o, b.before, g.mqp);
  if (!b.correct) return;
  transpose(b.length, b.ldv, g.x, b.ldv, g.turned_x, b.ldm);
  pair_grads(b, value, g.turned_x, true, g.mck);
  if (b.general) pair_grads(b, b.x, g.turned_x, true, g.mcp);
}

// Through what the rows read from the state at the block's start and wrote to that at its end.
HWY_NOINLINE void rows_through_states(const Block& b, const float* value, const float* state,
                                      const float* grad_state, bool decays, BlockGrads& g) {
  state_times(b, state, g.turned_o, g.turned_key, g.decayed);
  through_factor(b, b.qe, true, b.before ? 0 : 1, decays, g, g.q);
  if (b.correct) {
    state_times(b, state, g.turned_x, g.turned_key, g.decayed);
    through_factor(b, b.ce, true, b.general ? 0 : 1, decays, g, g.c);
  }
  transpose(b.length, b.ldv, value, b.ldv, g.turned_value, b.ldm);
  state_times(b, grad_state, g.turned_value, g.turned_key, g.decayed);
  through_factor(b, b.ke, false, 0, decays, g, g.k);
  if (b.general) {
    transpose(b.length, b.ldv, b.x, b.ldv, g.turned_value, b.ldm);
    state_times(b, grad_state, g.turned_value, g.turned_key, g.decayed);
    through_factor(b, b.pe, false, 0, decays, g, g.p);
  }
}

// From the matrices over pairs to the rows.
HWY_NOINLINE void rows_from_pairs(const Block& b, bool decays, BlockGrads& g) {
  if (b.channel) {
    if (b.correct) {
      channel_pair_grads<true>(b, b.k, g.mqk, g.mck, b.general, g, g.k);
      if (b.general) channel_pair_grads<true>(b, b.p, g.mqp, g.mcp, true, g, g.p);
    } else {
      channel_pair_grads<false>(b, b.k, g.mqk, nullptr, false, g, g.k);
    }
    return;
  }
  float* decay = decays ? g.decay : nullptr;
  scalar_pair_grads(b, b.q, b.k, b.weight_q, b.mqk, b.before, g.mqk, g.q, g.k, decay);
  if (b.general) {
    scalar_pair_grads(b, b.q, b.p, b.weight_q, b.mqp, b.before, g.mqp, g.q, g.p, decay);
  }
  if (b.correct) {
    scalar_pair_grads(b, b.c, b.k, b.weight_c, b.mck, b.general, g.mck, g.c, g.k, decay);
  }
  if (b.general) {
    scalar_pair_grads(b, b.c, b.p, b.weight_c, b.mcp, true, g.mcp, g.c, g.p, decay);
  }
}

// Through the tokens' own values, read by the bonus.
HWY_NOINLINE void bonus_grads(const Block& b, double* grad_bonus, BlockGrads& g) {
  const DF d;
  for (int64_t i = 0; i < b.length; ++i) {
    const VF to_value = hn::Set(d, row_dot(g.o + i * b.ldv, b.v + i * b.ldv, b.ldv));
    HWY_ALIGN float token[kLanes];
    for (int64_t e = 0; e < b.ldk; e += kLanes) {
      const int64_t at = i * b.ldk + e;
      const VF u = hn::LoadU(d, b.bonus + e), q = hn::LoadU(d, b.q + at);
      const VF k = hn::LoadU(d, b.k + at), ut = hn::Mul(u, to_value);
      hn::StoreU(hn::MulAdd(ut, k, hn::LoadU(d, g.q + at)), d, g.q + at);
      hn::StoreU(hn::MulAdd(ut, q, hn::LoadU(d, g.k + at)), d, g.k + at);
      hn::Store(hn::Mul(hn::Mul(q, k), to_value), d, token);
      for (int64_t lane = 0; lane < kLanes; ++lane) grad_bonus[e + lane] += token[lane];
    }
    const VF own = hn::Set(d, b.own[i]);
    for (int64_t e = 0; e < b.ldv; e += kLanes) {
      float* at = g.v + i * b.ldv + e;
      hn::StoreU(hn::MulAdd(own, hn::LoadU(d, g.o + i * b.ldv + e), hn::LoadU(d, at)), d, at);
    }
  }
}

// All gradients of a prepared block; `state` is the one at its start. grad_state goes from the end
// of the block to its start.
HWY_NOINLINE void block_grads(const ScanProblem& s, const Block& b, const float* state,
                              float* grad_state, double* grad_bonus, BlockGrads& g) {
  const DF d;
  const int64_t l = b.length;
  const bool decays = s.decay != Decay::kNone;
  const float* value = b.general ? b.v : b.w;  // what the columns k write
  std::fill_n(g.decay, b.channel ? l * b.ldk : l, 0.0f);
  for (float* tile : {g.q, g.k, g.c, g.p}) std::fill_n(tile, l * b.ldk, 0.0f);

  value_grads(b, grad_state, g);
  pairs_from_values(b, value, g);
  rows_through_states(b, value, state, grad_state, decays, g);
  if (decays) carried_decay_grads(b, state, grad_state, g);
  rows_from_pairs(b, decays, g);
  if (s.bonus) bonus_grads(b, grad_bonus, g);
  if (b.correct && !b.general) {  // delta: the rows c are -k
    for (int64_t i = 0; i < l * b.ldk; i += kLanes) {
      hn::StoreU(hn::Sub(hn::LoadU(d, g.k + i), hn::LoadU(d, g.c + i)), d, g.k + i);
    }
  }

  g.stored.decay(b.factors_now->total, StoredState::kNone);
  product(b.dk, b.dv, l, {b.qe, 1, b.ldk}, g.o, b.ldv, grad_state, b.lds,
          decayed(b, decays, g.stored), Shape::kFull, &b.tokens.fetch,
          b.correct ? Second{b.ce, g.x} : Second{});
}

// Gradient rows of the block's tokens into x, columns from `first` on.
HWY_NOINLINE void store_tokens(const ScanProblem& s, const Block& b, const float* from, int64_t ld,
                               int64_t width, const ScanTensor& x, int64_t first = 0) {
  if (!x) return;
  const DF d;
  const TokenReader& at = b.tokens;
  const bool streams = width % kLanes == 0 && rows_stream(s, x, width, first);
  for (int64_t i = 0; i < b.length; ++i) {
    const float* row = from + i * ld;
    char* to = const_cast<char*>(token_row(x, at.batch, at.begin + i, at.head, first));
    if (!streams) {
      store_row(row, width, to, HEED_FLOAT32);
      continue;
    }
    for (int64_t e = 0; e < width; e += kLanes) {
      hn::Stream(hn::LoadU(d, row + e), d, reinterpret_cast<float*>(to) + e);
    }
  }
}

// One sequence, head and block of columns on the way forward and back. The sequence is cut into
// segments of blocks: states at the starts of segments are kept, those inside are computed again.
class BackwardPass {
 public:
  BackwardPass(const ScanProblem& s, const ScanGradProblem& out, int64_t n, int64_t h,
               ScanColumns columns, int64_t longest, Arena& arena)
      : s_(s),
        out_(out),
        n_(n),
        h_(h),
        columns_(columns),
        span_(s.span(n)),
        decays_(s.decay != Decay::kNone),
        b_(s, columns.width, 1, arena),
        g_(b_, arena),
        most_blocks_((longest + b_.block - 1) / b_.block),
        per_segment_(blocks_per_segment(most_blocks_)),
        kept_(b_, most_blocks_, per_segment_, arena),
        blocks_((span_.length + b_.block - 1) / b_.block),
        segments_((blocks_ + per_segment_ - 1) / per_segment_) {
    b_.tokens.first = span_.begin;
    b_.tokens.last = span_.begin + span_.length;
    // Key gradients are turned over whole padded rows.
    std::fill_n(g_.turned_key, b_.ldk * b_.ldm, 0.0f);
    std::fill_n(kept_.bonus, b_.ldk, 0.0);
  }

  void forward() {
    load_state(s_.initial_state, n_, h_, columns_, b_, kept_.state);
    for (int64_t segment = 0; segment < segments_; ++segment) {
      std::copy_n(kept_.state, b_.floats(), kept_.starts + segment * b_.floats());
      if (segment + 1 == segments_) break;
      for (int64_t i = 0; i < per_segment_; ++i) {
        step_state(segment * per_segment_ + i, kept_.state, kept_.state, false);
      }
    }
  }

  void backward() {
    load_state(out_.grad_final_state, n_, h_, columns_, b_, kept_.grad_state);
    for (int64_t segment = segments_ - 1; segment >= 0; --segment) {
      const int64_t first = segment * per_segment_, last = std::min(blocks_, first + per_segment_);
      const int64_t size = b_.floats();
      const auto state_of = [&](int64_t block) {
        return block == first ? kept_.starts + segment * size
                              : kept_.inside + (block - first) * size;
      };
      const bool passed = kept_.all_values && segment + 1 < segments_;  // by forward()
      for (int64_t block = first; block + 1 < last; ++block) {
        step_state(block, state_of(block), state_of(block + 1), passed);
      }
      for (int64_t block = last - 1; block >= first; --block) {
        grads_of(block, state_of(block), passed || block + 1 < last);
      }
    }
    hwy::FlushStream();  // before another thread is told that the gradients are there
    const float one = 1;
    store_state(kept_.grad_state, &one, 0, b_, n_, h_, columns_, out_.initial_state);
  }

  double head_decay() const { return decay_sum_; }
  const double* bonus() const { return kept_.bonus; }

 private:
  int64_t length_of(int64_t block) const {
    return std::min(b_.block, span_.length - block * b_.block);
  }

  // X of a prepared block whose state is `state`: if `known` from where it was kept, else kept now.
  void values_of(int64_t block, const float* state, bool known) {
    if (!b_.correct) return;
    const int64_t place = kept_.all_values ? block : block % per_segment_;
    b_.x = kept_.values + place * b_.block * b_.ldv;
    if (b_.general) b_.w = b_.x;
    if (!known) {
      correct_values(b_, state);
    } else if (!b_.general) {
      scale_rows(b_.x, b_.beta, 1, b_.length, b_.ldv, b_.w);
    }
  }

  void step_state(int64_t block, const float* from, float* to, bool known) {
    b_.tokens.ahead = b_.block;
    prepare_block(s_, b_, span_.b, span_.begin + block * b_.block, h_, length_of(block), columns_,
                  true);
    values_of(block, from, known);
    stored_.decay(b_.factors_now->total, StoredState::kNone);
    Start start = decayed(b_, decays_, stored_);
    start.from = from;
    advance_state(b_, start, to);
  }

  void grads_of(int64_t block, const float* state, bool known) {
    const int64_t l = length_of(block);
    b_.tokens.ahead = -b_.block;
    prepare_block(s_, b_, span_.b, span_.begin + block * b_.block, h_, l, columns_);
    values_of(block, state, known);
    if (out_.grad_out) {
      b_.tokens.load(out_.grad_out, b_.dv, 1, g_.o, b_.ldv, columns_.begin);
    } else {
      std::fill_n(g_.o, b_.block * b_.ldv, 0.0f);
    }
    // The products of value_grads and of the state's gradient.
    b_.tokens.fetch.spread(2 * l * b_.dk * b_.ldv / kLanes);
    block_grads(s_, b_, state, kept_.grad_state, kept_.bonus, g_);
    const DF d;
    for (int64_t i = 0; i < l * b_.ldk; i += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, g_.q + i), hn::Set(d, s_.scale)), d, g_.q + i);
    }
    store_grads(l);
  }

  void store_grads(int64_t l) {
    store_tokens(s_, b_, g_.q, b_.ldk, b_.dk, out_.q);
    store_tokens(s_, b_, g_.k, b_.ldk, b_.dk, out_.k);
    store_tokens(s_, b_, g_.v, b_.ldv, b_.dv, out_.v, columns_.begin);
    if (b_.general) {
      store_tokens(s_, b_, g_.p, b_.ldk, b_.dk, out_.p);
      store_tokens(s_, b_, g_.c, b_.ldk, b_.dk, out_.r);
    }
    if (s_.correction == Correction::kDelta) store_tokens(s_, b_, g_.beta, 1, 1, out_.beta);
    if (b_.channel) {
      store_tokens(s_, b_, g_.decay, b_.ldk, b_.dk, out_.log_decay);
    } else if (s_.decay == Decay::kToken) {
      store_tokens(s_, b_, g_.decay, 1, 1, out_.log_decay);
    } else if (decays_) {
      for (int64_t i = 0; i < l; ++i) decay_sum_ += g_.decay[i];
    }
  }

  const ScanProblem& s_;
  const ScanGradProblem& out_;
  const int64_t n_, h_;
  const ScanColumns columns_;
  const ScanProblem::Span span_;
  const bool decays_;
  Block b_;
  BlockGrads g_;
  const int64_t most_blocks_, per_segment_;
  const Kept kept_;
  const int64_t blocks_, segments_;
  StoredState stored_;
  double decay_sum_ = 0;
};

// One (sequence, head, block of columns). Gradients of v and of the initial state have columns of
// their own; all others are this block's part of a sum over columns, written to `out`. head_decay
// and bonus are this task's parts of sums over sequences and columns.
void backward_task(const ScanProblem& s, const ScanGradProblem& out, int64_t n, int64_t h,
                   ScanColumns columns, int64_t longest, float* scratch, double* head_decay,
                   double* bonus) {
  Arena arena(scratch);
  BackwardPass pass(s, out, n, h, columns, longest, arena);
  pass.forward();
  pass.backward();
  *head_decay = pass.head_decay();
  std::copy_n(pass.bonus(), s.dk, bonus);
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(backward_scratch);
HWY_EXPORT(backward_task);

namespace {

// Gradients that are sums over columns: one contiguous copy of each for every block of columns
// after the first, added up in their order at the end.
struct ColumnParts {
  static constexpr int kCount = 6;
  static ScanTensor* tensor(ScanGradProblem& g, int i) {
    ScanTensor* all[kCount] = {&g.q, &g.k, &g.p, &g.r, &g.beta, &g.log_decay};
    return all[i];
  }
  int64_t width[kCount];
  std::vector<ScanGradProblem> blocks;

  ColumnParts(const ScanProblem& s, const ScanGradProblem& grads, int64_t count, float* memory)
      : width{s.dk, s.dk, s.dk, s.dk, 1, s.decay == Decay::kChannel ? s.dk : 1},
        blocks(count, grads) {
    for (int64_t block = 1; block < count; ++block) {
      for (int i = 0; i < kCount; ++i) {
        ScanTensor* x = tensor(blocks[block], i);
        if (!*x || (x == &blocks[block].log_decay && s.decay == Decay::kHead)) continue;
        *x = {reinterpret_cast<char*>(memory), HEED_FLOAT32, s.time * s.heads * width[i],
              s.heads * width[i], width[i]};
        memory += s.batch * s.time * s.heads * width[i];
      }
    }
  }

  // Floats of `memory`, whichever gradients are wanted.
  static int64_t floats(const ScanProblem& s, int64_t count) {
    return (count - 1) * s.batch * s.time * s.heads * (5 * s.dk + 1);
  }

  void add_up(const ScanProblem& s, int64_t row) {
    const int64_t b = row / s.time, t = row % s.time;
    for (int i = 0; i < kCount; ++i) {
      const ScanTensor& to = *tensor(blocks[0], i);
      if (!to || (i == 5 && s.decay == Decay::kHead)) continue;
      for (int64_t h = 0; h < s.heads; ++h) {
        float* sum = reinterpret_cast<float*>(to.data) + b * to.b + t * to.t + h * to.h;
        for (size_t block = 1; block < blocks.size(); ++block) {
          const ScanTensor& x = *tensor(blocks[block], i);
          const float* part = reinterpret_cast<const float*>(x.data) + b * x.b + t * x.t + h * x.h;
          for (int64_t e = 0; e < width[i]; ++e) sum[e] += part[e];
        }
      }
    }
  }
};

// How the workspace of a call is laid out: each task's sums of decay and bonus, the parts of the
// columns, the scratch of the workers.
struct Plan {
  int64_t pairs, column_blocks, longest = 0, floats, sums, parts;

  Plan(const ScanProblem& s, int32_t threads)
      : pairs(s.sequences * s.heads), column_blocks(scan_column_blocks(pairs, s.dv, threads)) {
    for (int64_t n = 0; n < s.sequences; ++n) longest = std::max(longest, s.span(n).length);
    floats = HWY_DYNAMIC_DISPATCH(backward_scratch)(s, scan_widest(column_blocks, s.dv), longest);
    sums = pairs * column_blocks * (1 + s.dk);
    parts = ColumnParts::floats(s, column_blocks);
  }
  int64_t bytes(int32_t threads) const {
    return 8 + 8 * sums + 4 * parts + ScanScratch::bytes(floats, threads);
  }
};

// Sums over sequences and columns, in their order.
void add_sums(const ScanProblem& s, const ScanGradProblem& grads, int64_t column_blocks,
              const double* head_decay, const double* bonus) {
  for (int64_t h = 0; h < s.heads; ++h) {
    double decay = 0;
    std::vector<double> u(s.dk, 0.0);
    for (int64_t n = 0; n < s.sequences; ++n) {
      for (int64_t block = 0; block < column_blocks; ++block) {
        const int64_t i = (n * s.heads + h) * column_blocks + block;
        decay += head_decay[i];
        for (int64_t e = 0; e < s.dk; ++e) u[e] += bonus[i * s.dk + e];
      }
    }
    if (s.decay == Decay::kHead && grads.log_decay) {
      reinterpret_cast<float*>(grads.log_decay.data)[h * grads.log_decay.h] =
          static_cast<float>(decay);
    }
    if (grads.bonus) {
      for (int64_t e = 0; e < s.dk; ++e) {
        reinterpret_cast<float*>(grads.bonus.data)[h * grads.bonus.h + e] =
            static_cast<float>(u[e]);
      }
    }
  }
}

}  // namespace

int64_t scan_backward_bytes(const ScanProblem& s, int32_t threads) {
  return Plan(s, threads).bytes(threads);
}

void scan_backward(const ScanProblem& s, const ScanGradProblem& grads, void* workspace,
                   const heed_parallel* parallel) {
  const int32_t threads = parallel_threads(parallel);
  const Plan plan(s, threads);
  const int64_t column_blocks = plan.column_blocks;
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(workspace) + 7) / 8 * 8;
  auto* head_decay = reinterpret_cast<double*>(aligned);
  double* bonus = head_decay + plan.pairs * column_blocks;
  std::fill_n(head_decay, plan.sums, 0.0);
  auto* memory = reinterpret_cast<float*>(head_decay + plan.sums);
  ColumnParts parts(s, grads, column_blocks, memory);
  const ScanScratch scratch(memory + plan.parts, plan.floats, threads);
  const auto task = HWY_DYNAMIC_DISPATCH(backward_task);
  parallel_for(parallel, plan.pairs * column_blocks, [&](int64_t i, int32_t worker) {
    const int64_t pair = i / column_blocks, block = i % column_blocks;
    task(s, parts.blocks[block], pair / s.heads, pair % s.heads,
         scan_columns(block, column_blocks, s.dv), plan.longest, scratch.of(worker), &head_decay[i],
         &bonus[i * s.dk]);
  });
  if (column_blocks > 1) {
    parallel_for(parallel, s.batch * s.time,
                 [&](int64_t row, int32_t worker) { parts.add_up(s, row); });
  }
  add_sums(s, grads, column_blocks, head_decay, bonus);
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
