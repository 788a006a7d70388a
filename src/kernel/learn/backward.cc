// learn_backward: the gradient through the inner loop. Memories are kept at the starts of segments,
// those of the chunks between are computed again, and the chunks of a segment are gone through
// from the last one on. Nothing is kept from the forward pass.
#include <cstring>
#include <vector>

#include "kernel/learn/problem.h"
#include "kernel/parallel.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/learn/backward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/learn/chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

constexpr int64_t kSegmentTokens = 64;  // about

// The coefficients of every token of a chunk, and the gradients by them. Row i of n, g, by_g has
// the entries j <= i.
struct CoefficientHistory {
  int64_t ld;
  double *n, *g, *by_g;                // [L][L]
  double *c, *p, *f;                   // [L]
  double *by_c, *by_f, *by_n;          // [L]; by_n: those of the last token
  double by_p;                         // of the last token
  double *alpha, *eta, *theta, *gain;  // gradients, [L]

  CoefficientHistory(int64_t l, Arena& arena) : ld(l) {
    const auto take = [&](int64_t doubles) {
      return reinterpret_cast<double*>(arena.take(2 * doubles));
    };
    for (double** x : {&n, &g, &by_g}) *x = take(l * l);
    for (double** x : {&c, &p, &f, &by_c, &by_f, &by_n, &alpha, &eta, &theta, &gain}) *x = take(l);
  }

  void record(const Coefficients& x, int64_t i) {
    std::copy_n(x.n, i + 1, n + i * ld);
    std::copy_n(x.g, i + 1, g + i * ld);
    c[i] = x.c, p[i] = x.p, f[i] = x.f;
  }

  // From the gradients by the coefficients to those by the gates: the recurrences of learn.h
  // backwards, column by column.
  void finish(const LearnChunk& b) {
    const int64_t l = b.length;
    for (int64_t i = 0; i < l; ++i) alpha[i] = eta[i] = theta[i] = 0;
    double dc = 0, dp = 0, df = 0;
    for (int64_t i = l - 1; i >= 0; --i) {
      const bool last = i == l - 1;
      const double keep = last ? 0 : 1 - b.alpha[i + 1], hold = last ? 0 : b.eta[i + 1];
      dc = by_c[i] + keep * dc;
      df = by_f[i] + keep * df;
      dp = (last ? by_p : 0) + hold * dp + df;
      alpha[i] -= dc * (i > 0 ? c[i - 1] : 1) + df * (i > 0 ? f[i - 1] : 0);
      eta[i] += dp * (i > 0 ? p[i - 1] : 1);
    }
    for (int64_t j = 0; j < l; ++j) {
      double dg = 0, dn = 0;
      for (int64_t i = l - 1; i >= j; --i) {
        const bool last = i == l - 1;
        dg = by_g[i * ld + j] + (last ? 0 : (1 - b.alpha[i + 1]) * dg);
        dn = (last ? by_n[j] : b.eta[i + 1] * dn) + dg;
        if (i == j) break;
        alpha[i] -= dg * g[(i - 1) * ld + j];
        eta[i] += dn * n[(i - 1) * ld + j];
      }
      theta[j] = dn;
    }
  }
};

struct BackwardChunk {
  LearnChunk b;
  CoefficientHistory history;
  float *go, *go_m, *go_z;         // dO, c_i dO_i, f_i dO_i
  float *qm, *qz, *km, *kz;        // q M*, q Z*, k dM, k dZ
  float *de, *dz, *dv;             // [L, V]
  float *dq, *dk;                  // [L, K]
  float *dot, *masked, *e_t;       // dO_i.e_j; its gradient by q_i.k_j; e transposed
  float *m_t, *z_t, *dm_t, *dz_t;  // transposed memories [V, K]
  float *dm, *dmomentum, *dstart;  // gradients by the memory and the momentum after the chunk
  float *dweight, *dbias;

  BackwardChunk(const LearnProblem& s, Arena& arena) : b(s, arena), history(s.tile, arena) {
    const int64_t first = arena.used(), l = pad_to(s.tile, 4);
    for (float** x : {&go, &go_m, &go_z, &qm, &qz, &km, &kz, &de, &dz, &dv}) {
      *x = arena.take(l * b.ldv);
    }
    dq = arena.take(l * b.ldk), dk = arena.take(l * b.ldk);
    dot = arena.take(l * b.ldl), masked = arena.take(l * b.ldl);
    e_t = arena.take(pad_to(b.width, 4) * b.ldl);
    for (float** x : {&m_t, &z_t, &dm_t, &dz_t}) *x = arena.take(pad_to(b.width, 4) * b.ldk);
    for (float** x : {&dm, &dmomentum, &dstart}) *x = arena.take(b.memory);
    dweight = arena.take(b.ldv), dbias = arena.take(b.ldv);
    if (go != nullptr) std::fill_n(go, arena.used() - first, 0.0f);
  }

  // c = start + a d, over the chunk's rows.
  void rows_times(const float* a, int64_t lda, const float* d, int64_t ldd, int64_t k, int64_t n,
                  float* c, int64_t ldc, Init init) const {
    product(b.length, n, k, {a, lda, 1}, d, ldd, c, ldc, init);
  }
  // c += a^T d, summed over the chunk's rows.
  void columns_times(const float* a, int64_t lda, int64_t m, const float* d, int64_t ldd, int64_t n,
                     float* c, int64_t ldc) const {
    product(m, n, b.length, {a, 1, lda}, d, ldd, c, ldc, Init::kAdd);
  }
  double memory_dot(const float* x, const float* y) const {
    double sum = 0;
    for (int64_t r = 0; r < b.rows; ++r) sum += row_dot(x + r * b.ldv, y + r * b.ldv, b.ldv);
    return sum;
  }

  void load_gradient(const Strided& grad_out, int64_t at, int64_t first, int64_t h) {
    load_rows(grad_out.row(at, first, h), grad_out.t * dtype_size(grad_out.dtype), grad_out.dtype,
              b.length, b.width, 1, nullptr, go, b.ldv);
  }

  // The coefficients once more, with their history; b.scores keeps q_i.k_j.
  void coefficients() {
    b.coefficients(false);
    transpose(b.length, b.rows, b.k, b.ldk, b.k_t, b.ldl);
    rows_times(b.q, b.ldk, b.k_t, b.ldl, b.rows, b.length, b.scores, b.ldl, Init::kZero);
    b.x.begin(b.s.momentum);
    for (int64_t i = 0; i < b.length; ++i) {
      b.x.advance(i, b.alpha[i], b.eta[i], b.theta[i]);
      history.record(b.x, i);
      const auto c = static_cast<float>(b.x.c), f = static_cast<float>(b.x.f);
      LearnChunk::scaled(go + i * b.ldv, c, b.ldv, go_m + i * b.ldv);
      if (b.s.momentum) LearnChunk::scaled(go + i * b.ldv, f, b.ldv, go_z + i * b.ldv);
    }
  }

  // The gradients by all coefficients, and by dz (into de).
  void through_reads(const float* m, const float* momentum) {
    const int64_t l = b.length, last = l - 1;
    transpose(l, b.width, b.e, b.ldv, e_t, b.ldl);
    rows_times(go, b.ldv, e_t, b.ldl, b.width, l, dot, b.ldl, Init::kZero);
    rows_times(b.q, b.ldk, m, b.ldv, b.rows, b.width, qm, b.ldv, Init::kZero);
    rows_times(b.k, b.ldk, dm, b.ldv, b.rows, b.width, km, b.ldv, Init::kZero);
    if (b.s.momentum) {
      rows_times(b.q, b.ldk, momentum, b.ldv, b.rows, b.width, qz, b.ldv, Init::kZero);
      rows_times(b.k, b.ldk, dmomentum, b.ldv, b.rows, b.width, kz, b.ldv, Init::kZero);
    }
    history.by_p = b.s.momentum ? memory_dot(dmomentum, momentum) : 0;
    for (int64_t i = 0; i < l; ++i) {
      const float* row = go + i * b.ldv;
      history.by_c[i] = row_dot(row, qm + i * b.ldv, b.ldv);
      history.by_f[i] = b.s.momentum ? row_dot(row, qz + i * b.ldv, b.ldv) : 0;
      history.gain[i] = 0;
      if (i == last) {
        history.by_c[i] += memory_dot(dm, m);
        if (b.s.momentum) history.by_f[i] += memory_dot(dm, momentum);
      }
      for (int64_t j = 0; j <= i; ++j) {
        const double g = history.g[i * history.ld + j], d = dot[i * b.ldl + j];
        double by = -d * b.scores[i * b.ldl + j];
        if (i == last) by -= row_dot(km + j * b.ldv, b.e + j * b.ldv, b.ldv);
        history.gain[i] += by * g;
        history.by_g[i * history.ld + j] = b.gain[i] * by;
        masked[i * b.ldl + j] = static_cast<float>(-b.gain[i] * g * d);
        b.scores[i * b.ldl + j] *= static_cast<float>(-b.gain[i] * g);
      }
      std::fill(masked + i * b.ldl + i + 1, masked + i * b.ldl + l, 0.0f);
      std::fill(b.scores + i * b.ldl + i + 1, b.scores + i * b.ldl + l, 0.0f);
    }
    for (int64_t j = 0; j < l; ++j) {
      const double g = -b.gain[last] * history.g[last * history.ld + j];
      const double n = -history.n[last * history.ld + j];
      history.by_n[j] = b.s.momentum ? -row_dot(kz + j * b.ldv, b.e + j * b.ldv, b.ldv) : 0;
      for (int64_t i = 0; i < b.ldv; ++i) {
        de[j * b.ldv + i] = static_cast<float>(g) * km[j * b.ldv + i];
        if (b.s.momentum) de[j * b.ldv + i] += static_cast<float>(n) * kz[j * b.ldv + i];
      }
    }
    columns_times(b.scores, b.ldl, l, go, b.ldv, b.width, de, b.ldv);
  }

  template <class Rule>
  void through_rule() {
    const RuleContext context = b.rule();
    for (int64_t i = 0; i < b.length; ++i) {
      const int64_t at = i * b.ldv;
      Rule::backward(context, b.z + at, b.v + at, de + at, {dz + at, dv + at, dweight, dbias});
    }
  }

  // dq and dk from everything that reads them.
  void through_tokens(const float* m, const float* momentum) {
    const int64_t k = b.rows, v = b.width;
    transpose(k, v, m, b.ldv, m_t, b.ldk);
    transpose(k, v, dm, b.ldv, dm_t, b.ldk);
    rows_times(go_m, b.ldv, m_t, b.ldk, v, k, dq, b.ldk, Init::kZero);
    rows_times(dz, b.ldv, m_t, b.ldk, v, k, dk, b.ldk, Init::kZero);
    if (b.s.momentum) {
      transpose(k, v, momentum, b.ldv, z_t, b.ldk);
      transpose(k, v, dmomentum, b.ldv, dz_t, b.ldk);
      rows_times(go_z, b.ldv, z_t, b.ldk, v, k, dq, b.ldk, Init::kAdd);
    }
    rows_times(masked, b.ldl, b.k, b.ldk, b.length, k, dq, b.ldk, Init::kAdd);
    columns_times(masked, b.ldl, b.length, b.q, b.ldk, k, dk, b.ldk);
    const int64_t last = b.length - 1;
    const auto scaled_e = [&](const double* by, double gain) {  // into qm, which is free by now
      for (int64_t j = 0; j < b.length; ++j) {
        LearnChunk::scaled(b.e + j * b.ldv, static_cast<float>(-gain * by[j]), b.ldv,
                           qm + j * b.ldv);
      }
    };
    scaled_e(history.g + last * history.ld, b.gain[last]);
    rows_times(qm, b.ldv, dm_t, b.ldk, v, k, dk, b.ldk, Init::kAdd);
    if (!b.s.momentum) return;
    scaled_e(history.n + last * history.ld, 1);
    rows_times(qm, b.ldv, dz_t, b.ldk, v, k, dk, b.ldk, Init::kAdd);
  }

  // dm and dmomentum: from after the chunk to before it.
  void through_memories() {
    const int64_t last = b.length - 1;
    const auto c = static_cast<float>(history.c[last]), f = static_cast<float>(history.f[last]);
    const auto p = static_cast<float>(history.p[last]);
    if (b.s.momentum) {
      for (int64_t i = 0; i < b.rows * b.ldv; ++i) dmomentum[i] = p * dmomentum[i] + f * dm[i];
      columns_times(b.q, b.ldk, b.rows, go_z, b.ldv, b.width, dmomentum, b.ldv);
    }
    for (int64_t i = 0; i < b.rows * b.ldv; ++i) dm[i] *= c;
    columns_times(b.q, b.ldk, b.rows, go_m, b.ldv, b.width, dm, b.ldv);
    columns_times(b.k, b.ldk, b.rows, dz, b.ldv, b.width, dm, b.ldv);
  }

  void store(const LearnTensors<Strided>& g, int64_t at, int64_t first, int64_t h) const {
    const auto tile = [&](const Strided& x, const float* from, int64_t ld, int64_t n) {
      if (!x) return;
      store_rows(from, ld, b.length, n, x.row(at, first, h), x.t * 4, HEED_FLOAT32);
    };
    for (int64_t i = 0; i < b.length * b.ldk; ++i) dq[i] *= b.s.scale;
    tile(g.q, dq, b.ldk, b.s.dk);
    tile(g.k, dk, b.ldk, b.s.dk);
    tile(g.v, dv, b.ldv, b.width);
    const auto gate = [&](const Strided& x, const double* from) {
      for (int64_t i = 0; x && i < b.length; ++i) {
        x.scalar(at, first + i, h) = static_cast<float>(from[i]);
      }
    };
    gate(g.alpha, history.alpha);
    gate(g.eta, history.eta);
    gate(g.theta, history.theta);
    gate(g.gain, history.gain);
  }
};

// One sequence and head. norm_parts: [2][padded V], what it adds to the gradients of the norm.
int64_t learn_backward_task(const LearnProblem& s, int64_t n, int64_t h, float* norm_parts,
                            float* scratch) {
  Arena arena(scratch);
  BackwardChunk x(s, arena);
  const auto& g = s.grad;
  LearnChunk& b = x.b;
  const int64_t chunks = std::max<int64_t>(1, kSegmentTokens / s.chunk);  // a segment
  const int64_t segment = chunks * s.chunk, segments = s.longest / segment + 1;
  const int64_t both = s.momentum ? 2 * b.memory : b.memory;
  float* kept = arena.take(segments * both);       // at the starts of segments
  float* inner = arena.take((chunks + 1) * both);  // at the starts of chunks
  if (scratch == nullptr) return arena.used();
  std::fill_n(inner, (chunks + 1) * both, 0.0f);  // products leave padding as it is
  load_memory(s.in.initial_state, s.in.initial_bias, n, h, b, kept);
  if (s.momentum) load_memory(s.in.initial_momentum, Strided(), n, h, b, kept + b.memory);
  load_memory(g.final_state, g.final_bias, n, h, b, x.dm);
  if (s.momentum) load_memory(g.final_momentum, Strided(), n, h, b, x.dmomentum);
  std::fill_n(x.dweight, b.ldv, 0.0f);
  std::fill_n(x.dbias, b.ldv, 0.0f);
  b.use_head(h);
  const auto span = s.span(n);
  const auto momentum_of = [&](float* m) { return s.momentum ? m + b.memory : nullptr; };
  const auto load = [&](int64_t t) {
    b.load(span.b, span.begin + t, h, std::min(s.chunk, span.length - t));
  };
  // inner[i] = the memory at the start of chunk i, for the tokens from `first` on.
  const auto replay = [&](int64_t first, int64_t end) {
    for (int64_t t = first, i = 0; t < end; t += s.chunk, ++i) {
      float *from = inner + i * both, *to = from + both;
      load(t);
      b.gradients(from);
      b.coefficients(false);
      b.advance(from, momentum_of(from), to, momentum_of(to));
    }
  };
  const int64_t used = (span.length + segment - 1) / segment;
  for (int64_t i = 0; i + 1 < used; ++i) {
    std::copy_n(kept + i * both, both, inner);
    replay(i * segment, (i + 1) * segment);
    std::copy_n(inner + chunks * both, both, kept + (i + 1) * both);
  }
  for (int64_t i = used - 1; i >= 0; --i) {
    const int64_t first = i * segment, end = std::min(first + segment, span.length);
    std::copy_n(kept + i * both, both, inner);
    replay(first, end);
    for (int64_t j = (end - first - 1) / s.chunk; j >= 0; --j) {
      const int64_t t = first + j * s.chunk;
      float *m = inner + j * both, *momentum = momentum_of(m);
      load(t);
      x.load_gradient(g.out, span.b, span.begin + t, h);
      b.gradients(m);
      x.coefficients();
      x.through_reads(m, momentum);
      if (s.norm) {
        x.through_rule<NormRule>();
      } else {
        x.through_rule<SquareRule>();
      }
      x.through_tokens(m, momentum);
      x.through_memories();
      x.history.finish(b);
      x.store(g, span.b, span.begin + t, h);
    }
  }
  store_memory(x.dm, g.initial_state, g.initial_bias, n, h, b);
  if (s.momentum) store_memory(x.dmomentum, g.initial_momentum, Strided(), n, h, b);
  if (norm_parts != nullptr) {
    std::copy_n(x.dweight, s.dv, norm_parts);
    std::copy_n(x.dbias, s.dv, norm_parts + s.dv);
  }
  return arena.used();
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(learn_backward_task);

int64_t learn_backward_floats(const LearnProblem& s) {
  return HWY_DYNAMIC_DISPATCH(learn_backward_task)(s, 0, 0, nullptr, nullptr);
}

void learn_backward(const LearnProblem& s, const Workers& workers, const heed_parallel* parallel) {
  const auto task = HWY_DYNAMIC_DISPATCH(learn_backward_task);
  const auto& g = s.grad;
  const bool norm = static_cast<bool>(g.norm_weight) || static_cast<bool>(g.norm_bias);
  std::vector<float> parts(norm ? static_cast<size_t>(s.sequences * s.heads * 2 * s.dv) : 0);
  parallel_for(parallel, s.sequences * s.heads, [&](int64_t i, int32_t worker) {
    float* part = norm ? parts.data() + i * 2 * s.dv : nullptr;
    task(s, i / s.heads, i % s.heads, part, workers.of(worker));
  });
  // The norm is shared by all sequences; they are added in one order whatever the threads did.
  for (int64_t h = 0; norm && h < s.heads; ++h) {
    for (int64_t j = 0; j < 2 * s.dv; ++j) {
      double sum = 0;
      for (int64_t n = 0; n < s.sequences; ++n) {
        sum += parts[static_cast<size_t>((n * s.heads + h) * 2 * s.dv + j)];
      }
      const Strided& x = j < s.dv ? g.norm_weight : g.norm_bias;
      if (x) reinterpret_cast<float*>(x.row(0, 0, h))[j % s.dv] = static_cast<float>(sum);
    }
  }
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
