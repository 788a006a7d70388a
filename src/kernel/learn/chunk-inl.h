// One chunk of the engine `learn` in closed form: the tiles that it works on, its coefficients, its
// gradients, its reads and the memory that it hands on. A bias is one more row of the memory, whose
// key and (unscaled) query are 1.
#include <algorithm>
#include <cstdint>

#include "kernel/learn/problem.h"

#if defined(HEED_LEARN_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_LEARN_CHUNK_INL_H_
#undef HEED_LEARN_CHUNK_INL_H_
#else
#define HEED_LEARN_CHUNK_INL_H_
#endif

#include "kernel/learn/rule-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

// The coefficients of a chunk, token by token (learn.h). Sums and products in float64.
struct Coefficients {
  double c, p, f;
  double *n, *g;  // n_ij and g_ij of the last token i

  void begin(bool momentum) { c = 1, p = momentum ? 1 : 0, f = 0; }
  void advance(int64_t i, double alpha, double eta, double theta) {
    for (int64_t j = 0; j < i; ++j) {
      n[j] *= eta;
      g[j] = (1 - alpha) * g[j] + n[j];
    }
    n[i] = g[i] = theta;
    c *= 1 - alpha;
    p *= eta;
    f = (1 - alpha) * f + p;
  }
};

struct LearnChunk {
  const LearnProblem& s;
  int64_t rows, width;            // of the memory: K (+ 1), V
  int64_t ldk, ldv, ldl, memory;  // floats a row; floats of a memory
  float *q, *k, *v, *z, *e, *o;   // tokens; e: dz
  float *read_m, *read_z;         // c_i q_i, f_i q_i
  float *write_m, *write_z;       // -gain_L g_Lj k_j, -n_Lj k_j
  float *k_t, *scores;            // k transposed; q_i.k_j, then -gain_i g_ij q_i.k_j
  float *alpha, *eta, *theta, *gain;
  float* factors;        // two floats a row, for decays of whole memories
  float *weight, *bias;  // of the norm
  Coefficients x;
  int64_t length = 0;

  LearnChunk(const LearnProblem& problem, Arena& arena)
      : s(problem),
        rows(problem.rows()),
        width(problem.dv),
        ldk(pad_to(rows, 16)),
        ldv(pad_to(width, 16)),
        ldl(pad_to(problem.tile, 16)),
        memory(pad_to(rows, 4) * ldv) {
    const int64_t first = arena.used(), l = pad_to(s.tile, 4);
    for (float** tile : {&q, &k, &read_m, &read_z, &write_m, &write_z}) *tile = arena.take(l * ldk);
    for (float** tile : {&v, &z, &e, &o}) *tile = arena.take(l * ldv);
    k_t = arena.take(pad_to(rows, 4) * ldl);
    scores = arena.take(l * ldl);
    for (float** row : {&alpha, &eta, &theta, &gain}) *row = arena.take(ldl);
    factors = arena.take(2 * ldk);
    weight = arena.take(ldv);
    bias = arena.take(ldv);
    x.n = reinterpret_cast<double*>(arena.take(2 * ldl));
    x.g = reinterpret_cast<double*>(arena.take(2 * ldl));
    // Columns past the last one must not hold NaN, and some are never written.
    if (q != nullptr) std::fill_n(q, arena.used() - first, 0.0f);
  }

  RuleContext rule() const { return {width, ldv, weight, bias, s.eps}; }

  void use_head(int64_t h) {
    if (!s.norm) return;
    load_row(s.in.norm_weight.row(0, 0, h), HEED_FLOAT32, width, 1, weight);
    load_row(s.in.norm_bias.row(0, 0, h), HEED_FLOAT32, width, 1, bias);
  }

  void load(int64_t b, int64_t first, int64_t h, int64_t tokens) {
    length = tokens;
    const auto tile = [&](const Strided& t, int64_t n, float by, float* to, int64_t ld) {
      load_rows(t.row(b, first, h), t.t * dtype_size(t.dtype), t.dtype, length, n, by, nullptr, to,
                ld);
    };
    tile(s.in.q, s.dk, s.scale, q, ldk);
    tile(s.in.k, s.dk, 1, k, ldk);
    tile(s.in.v, s.dv, 1, v, ldv);
    for (int64_t i = 0; s.bias && i < length; ++i) q[i * ldk + s.dk] = k[i * ldk + s.dk] = 1;
    const auto scalars = [&](const Strided& t, float missing, float* to) {
      for (int64_t i = 0; i < length; ++i) to[i] = t ? t.scalar(b, first + i, h) : missing;
    };
    scalars(s.in.alpha, 0, alpha);
    scalars(s.in.eta, 0, eta);
    scalars(s.in.theta, 1, theta);
    scalars(s.in.gain, 1, gain);
  }

  template <class Rule>
  void row_gradients() {
    const RuleContext context = rule();
    for (int64_t i = 0; i < length; ++i) {
      Rule::gradient(context, z + i * ldv, v + i * ldv, e + i * ldv);
    }
  }
  // z = k M*, e = dz.
  void gradients(const float* m) {
    product(length, width, rows, {k, ldk, 1}, m, ldv, z, ldv, Init::kZero);
    if (s.norm) {
      row_gradients<NormRule>();
    } else {
      row_gradients<SquareRule>();
    }
  }

  static void scaled(const float* from, float by, int64_t n, float* to) {
    for (int64_t i = 0; i < n; ++i) to[i] = by * from[i];
  }

  // The chunk's coefficients into scores (with `reads`), read_m, read_z, write_m and write_z.
  // `open`: for a piece of a chunk that reads the running memory beside that of the chunk's start;
  // then the gain is for reads alone, and read_z is for the running memory.
  void coefficients(bool reads, bool open = false) {
    if (reads) {
      transpose(length, rows, k, ldk, k_t, ldl);
      product(length, length, rows, {q, ldk, 1}, k_t, ldl, scores, ldl, Init::kZero);
    }
    x.begin(s.momentum);
    for (int64_t i = 0; i < length; ++i) {
      x.advance(i, alpha[i], eta[i], theta[i]);
      if (!reads) continue;
      float* row = scores + i * ldl;
      for (int64_t j = 0; j <= i; ++j) row[j] *= static_cast<float>(-gain[i] * x.g[j]);
      std::fill(row + i + 1, row + length, 0.0f);
      const double by = open && s.in.gain ? 1 - gain[i] : x.c;
      scaled(q + i * ldk, static_cast<float>(by), ldk, read_m + i * ldk);
      if (open && s.in.gain) scaled(q + i * ldk, gain[i], ldk, read_z + i * ldk);
      if (s.momentum) scaled(q + i * ldk, static_cast<float>(x.f), ldk, read_z + i * ldk);
    }
    for (int64_t j = 0; j < length; ++j) {
      const double g = (open ? 1 : gain[length - 1]) * x.g[j];
      scaled(k + j * ldk, static_cast<float>(-g), ldk, write_m + j * ldk);
      if (s.momentum) {
        scaled(k + j * ldk, static_cast<float>(-x.n[j]), ldk, write_z + j * ldk);
      }
    }
  }

  // o = what the chunk's queries read, of m by read_m and of `beside` (the momentum, or a running
  // memory) by read_z.
  void read(const float* m, const float* beside) {
    Second second;
    if (beside != nullptr) second = {read_z, beside};
    product(length, width, rows, {read_m, ldk, 1}, m, ldv, o, ldv, Init::kZero, Shape::kFull,
            nullptr, second);
    product(length, width, length, {scores, ldl, 1}, e, ldv, o, ldv, Init::kAdd, Shape::kLower);
  }

  // to = factor from + write^T e. The factor is a sum of two floats: a rounded one, applied at
  // every chunk, would drift.
  void carry(const float* from, double factor, const float* write, float* to) const {
    Start start(Init::kAdd);
    if (factor != 1) {
      const auto hi = static_cast<float>(factor);
      std::fill_n(factors, rows, hi);
      std::fill_n(factors + ldk, rows, static_cast<float>(factor - hi));
      start = Start(Init::kDecay, factors, factors + ldk);
    }
    start.from = from;
    product(rows, width, length, {write, 1, ldk}, e, ldv, to, ldv, start);
  }
  // m + gain (running - m) with the last token's gain: what a chunk that is complete leaves.
  void close(const float* running, float* m) const {
    const float by = gain[length - 1];
    for (int64_t i = 0; i < rows * ldv; ++i) {
      m[i] = s.in.gain ? m[i] + by * (running[i] - m[i]) : running[i];
    }
  }
  // The memory and the momentum after the chunk; `to` may be `from`.
  void advance(const float* m, const float* momentum, float* to_m, float* to_momentum) const {
    carry(m, x.c, write_m, to_m);
    if (!s.momentum) return;
    const auto f = static_cast<float>(x.f);
    for (int64_t i = 0; i < rows * ldv; ++i) to_m[i] += f * momentum[i];
    carry(momentum, x.p, write_z, to_momentum);
  }
};

// Rows of a state [N,H,K,V], and the bias [N,H,V] as one more, into rows of ldv floats; zero where
// there is none. The state's rows lie `x.h` apart.
[[maybe_unused]] static void load_memory(const Strided& x, const Strided& bias, int64_t n,
                                         int64_t h, const LearnChunk& b, float* to) {
  std::fill_n(to, b.memory, 0.0f);
  if (x) {
    load_rows(x.row(n, h, 0), x.h * dtype_size(x.dtype), x.dtype, b.s.dk, b.width, 1, nullptr, to,
              b.ldv);
  }
  if (bias) load_row(bias.row(n, h, 0), bias.dtype, b.width, 1, to + b.s.dk * b.ldv);
}
[[maybe_unused]] static void store_memory(const float* from, const Strided& x, const Strided& bias,
                                          int64_t n, int64_t h, const LearnChunk& b) {
  if (x) {
    store_rows(from, b.ldv, b.s.dk, b.width, x.row(n, h, 0), x.h * dtype_size(x.dtype), x.dtype);
  }
  if (!bias) return;
  if (b.s.bias) {
    store_row(from + b.s.dk * b.ldv, b.width, bias.row(n, h, 0), bias.dtype);
  } else {
    for (int64_t i = 0; i < b.width; ++i) (&bias.scalar(n, h, 0))[i] = 0;
  }
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HEED_LEARN_CHUNK_INL_H_
