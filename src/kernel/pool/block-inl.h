// Tiles of the engine `pool`, and the epilogue of one row.
#include <algorithm>
#include <cstdint>

#include "kernel/pool/problem.h"

#if defined(HEED_POOL_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_POOL_BLOCK_INL_H_
#undef HEED_POOL_BLOCK_INL_H_
#else
#define HEED_POOL_BLOCK_INL_H_
#endif

#include "kernel/simd/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

// The sums of one sequence and KV head, or the gradients by them: S [M, ldv], z [ldm], the sum of
// values [ldv].
struct PoolSums {
  float *s, *z, *u;

  PoolSums(const PoolProblem& p, float* at) : s(at), z(at + p.matrix()), u(z + p.ldm()) {}
};

// x += y.
HWY_INLINE void add_row(const float* HWY_RESTRICT y, float by, int64_t n, float* HWY_RESTRICT x) {
  const DF d;
  const VF factor = hn::Set(d, by);
  for (int64_t i = 0; i < n; i += kLanes) {
    hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, x + i);
  }
}

// x += the sum of the rows of a tile. A sum over all tokens one by one would round its small terms
// away, all of them alike.
HWY_INLINE void add_rows(const float* HWY_RESTRICT tile, int64_t ld, int64_t rows, int64_t n,
                         float* HWY_RESTRICT x) {
  const DF d;
  for (int64_t i = 0; i < n; i += kLanes) {
    VF sum = hn::Zero(d);
    for (int64_t r = 0; r < rows; ++r) sum = hn::Add(sum, hn::LoadU(d, tile + r * ld + i));
    hn::StoreU(hn::Add(hn::LoadU(d, x + i), sum), d, x + i);
  }
}

// x = a x + b y + c z; y and z may be nullptr.
HWY_INLINE void combine_row(float a, float b, const float* HWY_RESTRICT y, float c,
                            const float* HWY_RESTRICT z, int64_t n, float* HWY_RESTRICT x) {
  const DF d;
  const VF by_x = hn::Set(d, a), by_y = hn::Set(d, b), by_z = hn::Set(d, c);
  for (int64_t i = 0; i < n; i += kLanes) {
    VF sum = hn::Mul(by_x, hn::LoadU(d, x + i));
    if (y != nullptr) sum = hn::MulAdd(by_y, hn::LoadU(d, y + i), sum);
    if (z != nullptr) sum = hn::MulAdd(by_z, hn::LoadU(d, z + i), sum);
    hn::StoreU(sum, d, x + i);
  }
}

// Rows [t, t + rows) of one head as floats, each times its factor if there are any.
HWY_INLINE void load_tile(const Strided& x, int64_t b, int64_t t, int64_t h, int64_t rows,
                          int64_t n, const float* factors, float* to, int64_t ld) {
  load_rows(x.row(b, t, h), x.t * dtype_size(x.dtype), x.dtype, rows, n, 1, factors, to, ld);
}
HWY_INLINE void store_tile(const float* from, int64_t ld, int64_t rows, int64_t n, const Strided& x,
                           int64_t b, int64_t t, int64_t h) {
  store_rows(from, ld, rows, n, x.row(b, t, h), x.t * dtype_size(x.dtype), x.dtype);
}
// The rows themselves, `ld` floats apart, where a tile would be a copy of them; else nullptr. Rows
// that lie pages apart share their places in the first cache: they are better copied.
HWY_INLINE float* rows_in_place(const Strided& x, int64_t b, int64_t t, int64_t h, int64_t n,
                                int64_t* ld) {
  if (x.dtype != HEED_FLOAT32 || n % 16 != 0 || x.t % 1024 == 0) return nullptr;
  *ld = x.t;
  return reinterpret_cast<float*>(x.row(b, t, h));
}
// Rows of the next tile, to be asked for while this one is computed: they lie too far apart for the
// processor to see what comes.
HWY_INLINE void fetch_tile(const Strided& x, int64_t b, int64_t t, int64_t h, int64_t rows,
                           int64_t n, Fetch& next, bool write = false) {
  if (rows <= 0 || !x) return;
  const int64_t bytes = dtype_size(x.dtype);
  next.add(x.row(b, t, h), x.t * bytes, rows, n * bytes, write);
}
HWY_INLINE void load_factors(const Strided& x, int64_t b, int64_t t, int64_t h, int64_t rows,
                             float* to) {
  for (int64_t i = 0; i < rows; ++i) to[i] = x ? x.scalar(b, t + i, h) : 1.0f;
}

// How a row's read and the mean value go into its result, from q.z: out = read x + mean u, with x
// the plain read q S and u the plain sum of values. Where both are of values less m, centre m is
// added: what m's part in all of them comes to.
struct PoolFactors {
  double read, mean, centre;
  double read_slope, mean_slope;  // by q.z

  PoolFactors(const PoolProblem& s, int64_t keys, double sum) {
    const PoolOptions& o = s.options;
    const double n = static_cast<double>(std::max<int64_t>(1, keys));
    const double c = o.by_count ? o.scale / n : o.scale, d = c * sum;
    const bool low = o.clamp && !(d > o.eps);
    const double divisor = o.clamp ? std::max(d, o.eps) : d + o.eps;
    read = c * (s.divides() ? o.a0 + o.a1 / divisor : o.a0);
    mean = (o.b0 + o.b1 * d) / n;
    centre = (o.a0 + o.b1) * d + (s.divides() ? o.a1 * d / divisor : 0) + o.b0;
    read_slope = s.divides() && !low ? -c * c * o.a1 / (divisor * divisor) : 0;
    mean_slope = o.b1 * c / n;
  }
};

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HEED_POOL_BLOCK_INL_H_
