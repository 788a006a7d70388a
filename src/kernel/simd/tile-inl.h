// Small dense matrix steps on float32 tiles, with Highway: products, transposes, loads and stores
// of 16-bit tokens, and the scratch memory that tiles lie in. Every tile has rows of a multiple of
// 16 floats and readable padding, so that products run over whole vectors.
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#if defined(HEED_KERNEL_SIMD_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_KERNEL_SIMD_TILE_INL_H_
#undef HEED_KERNEL_SIMD_TILE_INL_H_
#else
#define HEED_KERNEL_SIMD_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include "heed/view.h"
#include "kernel/simd/math-inl.h"
#include "kernel/simd_dtype.h"
#include "kernel/simd_targets.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A product keeps a tile of rows x vectors in registers: kWide vectors where there are as many
// left, else two, then one, with as many more rows. Every multiply-add of a tile needs one vector
// and one scalar; the nearer it is to a square of loads, the fewer they are.
constexpr int kWide = kLanes >= 16 ? 4 : 2;
constexpr int kTileVectors = kLanes >= 16 ? 16 : 8;
template <int N>
constexpr int kRows = kTileVectors / N;

HWY_INLINE int64_t pad_to(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Hands out 64-byte aligned pieces of one buffer; with base == nullptr it only counts.
class Arena {
 public:
  explicit Arena(float* base) : base_(base) {}
  float* take(int64_t floats) {
    float* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += pad_to(floats, 16);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  float* base_;
  int64_t used_ = 0;
};

// What a product starts from: nothing, C, C times *hi, or C with row m multiplied by hi[m] + lo[m]
// (a decay as a sum of two floats: a rounded factor applied at every block would drift).
enum class Init { kZero, kAdd, kScale, kDecay };

struct Start {
  Init init;
  const float *hi, *lo;
  const float* from = nullptr;  // C as it was, where the result goes elsewhere; rows as in C

  Start(Init from, const float* high = nullptr, const float* low = nullptr)
      : init(from), hi(high), lo(low) {}
};

// Which k matter for the rows [m, m + rows) of A: all, those up to the last row (A lower
// triangular), or those from the first row on (upper triangular).
enum class Shape { kFull, kLower, kUpper };

struct Matrix {  // A(m, k) = data[m * row + k * col]
  const float* data;
  int64_t row, col;
};

// A second product that is added to the first, of the same sizes and strides; none without `a`.
struct Second {
  const float *a = nullptr, *b = nullptr;
};

// Rows of memory to fetch into the cache early. A processor has a few dozen misses under way at
// most and stands still when more are asked for: rows are asked for one by one, as the work of
// products that have no use for the memory goes on.
struct Fetch {
  struct Rows {
    const char* data;
    int64_t stride, count, bytes;  // bytes between rows, rows, bytes a row
    bool write;
    int64_t cost;  // work a row

    int64_t lines() const { return (bytes + 63) / 64; }
  };
  static constexpr int kMost = 8;  // q, k, v, p, r, decay, out or its gradient
  Rows list[kMost];
  int count = 0, next = 0;
  int64_t row = 0;     // of list[next]
  int64_t unused = 0;  // work that asked for none yet

  void clear() { count = 0, next = 0; }
  void add(const char* data, int64_t stride, int64_t rows, int64_t bytes, bool write = false) {
    if (rows > 0) list[count++] = {data, stride, rows, bytes, write, 0};
  }
  // So much work is to come: the lines are spread over it.
  void spread(int64_t work) {
    int64_t lines = 0;
    for (int i = 0; i < count; ++i) lines += list[i].count * list[i].lines();
    const int64_t a_line = work / std::max<int64_t>(1, lines);
    for (int i = 0; i < count; ++i) list[i].cost = list[i].lines() * a_line;
    unused = 0, next = 0, row = 0;
  }
  void advance(int64_t work) {
    int64_t left = unused + work;
    while (next < count && left >= list[next].cost) {
      const Rows& rows = list[next];
      const char* line = rows.data + row * rows.stride;
      const char* const end = line + rows.bytes;
      // Into the second level: the first has fewer misses under way at once, and no room.
      if (rows.write) {
        for (; line < end; line += 64) __builtin_prefetch(line, 1, 2);
      } else {
        for (; line < end; line += 64) __builtin_prefetch(line, 0, 2);
      }
      left -= rows.cost;
      if (++row == rows.count) row = 0, ++next;
    }
    unused = left;
  }
};

// acc += A (M x [k0, k1)) B.
template <int M, int N>
HWY_INLINE void multiply_add(int64_t k0, int64_t k1, const float* HWY_RESTRICT a, int64_t row,
                             int64_t col, const float* HWY_RESTRICT b, int64_t ldb,
                             VF (&acc)[M][N]) {
  const DF d;
  for (int64_t k = k0; k < k1; ++k) {
    VF right[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) right[n] = hn::LoadU(d, b + k * ldb + n * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const VF left = hn::Set(d, a[m * row + k * col]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = hn::MulAdd(left, right[n], acc[m][n]);
    }
  }
}

template <int M, int N>
HWY_INLINE void set_zero(VF (&acc)[M][N]) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[m][n] = hn::Zero(DF());
  }
}

template <int M, int N>
HWY_INLINE void product_tile(int64_t k0, int64_t k1, const float* HWY_RESTRICT a, int64_t row,
                             int64_t col, const float* HWY_RESTRICT b, int64_t ldb,
                             const Second& second, const float* from, float* c, int64_t ldc,
                             Init init, const float* hi, const float* lo) {
  const DF d;
  VF acc[M][N];
  set_zero(acc);
  multiply_add(k0, k1, a, row, col, b, ldb, acc);
  if (second.a != nullptr) multiply_add(k0, k1, second.a, row, col, second.b, ldb, acc);
    // C comes in last, so that a long sum is rounded once a product and not once a term.
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const int64_t at = m * ldc + n * kLanes;
      if (init == Init::kAdd) {
        acc[m][n] = hn::Add(acc[m][n], hn::LoadU(d, from + at));
      } else if (init == Init::kScale) {
        acc[m][n] = hn::MulAdd(hn::LoadU(d, from + at), hn::Set(d, *hi), acc[m][n]);
      } else if (init == Init::kDecay) {
        const VF old = hn::LoadU(d, from + at);
        acc[m][n] = hn::MulAdd(old, hn::Set(d, lo[m]), acc[m][n]);
        acc[m][n] = hn::MulAdd(old, hn::Set(d, hi[m]), acc[m][n]);
      }
      hn::StoreU(acc[m][n], d, c + at);
    }
  }
}

template <int N>
HWY_INLINE void product_panel(int64_t m, int64_t k, Matrix a, const float* b, int64_t ldb,
                              const Second& second, const float* from, float* c, int64_t ldc,
                              const Start& start, Shape shape, Fetch* fetch) {
  const auto tile = [&](int64_t m0, auto rows) HWY_ATTR {
    constexpr int kTile = decltype(rows)::value;
    const int64_t k0 = shape == Shape::kUpper ? m0 : 0;
    const int64_t k1 = shape == Shape::kLower && m0 + kTile < k ? m0 + kTile : k;
    const int64_t own = start.init == Init::kDecay ? m0 : 0;
    Second too = second;
    if (too.a != nullptr) too.a += m0 * a.row;
    product_tile<kTile, N>(k0, k1, a.data + m0 * a.row, a.row, a.col, b, ldb, too, from + m0 * ldc,
                           c + m0 * ldc, ldc, start.init, start.hi + own, start.lo + own);
    if (fetch != nullptr) fetch->advance(kTile * N * (k1 - k0));
  };
  constexpr int kTall = kRows<N>;
  int64_t m0 = 0;
  for (; m0 + kTall <= m; m0 += kTall) tile(m0, std::integral_constant<int, kTall>());
  if (kTall > 4 && m0 + 4 <= m) {
    tile(m0, std::integral_constant<int, 4>());
    m0 += 4;
  }
  for (; m0 < m; ++m0) tile(m0, std::integral_constant<int, 1>());
}

// visit(first column, vectors) for the panels of n columns, rounded up to whole vectors.
template <class Visit>
HWY_INLINE void for_panels(int64_t n, Visit&& visit) {
  int64_t n0 = 0;
  for (; n0 + (kWide - 1) * kLanes < n; n0 += kWide * kLanes) {
    visit(n0, std::integral_constant<int, kWide>());
  }
  if (kWide > 2 && n0 + kLanes < n) {
    visit(n0, std::integral_constant<int, 2>());
    n0 += 2 * kLanes;
  }
  if (n0 < n) visit(n0, std::integral_constant<int, 1>());
}

// C (m x n) = start + A (m x k) B (k x n), plus the second product if there is one; n is rounded up
// to whole vectors.
[[maybe_unused]] static HWY_NOINLINE void product(int64_t m, int64_t n, int64_t k, Matrix a,
                                                  const float* b, int64_t ldb, float* c,
                                                  int64_t ldc, const Start& start,
                                                  Shape shape = Shape::kFull,
                                                  Fetch* fetch = nullptr,
                                                  const Second& second = {}) {
  const float* const from = start.from != nullptr ? start.from : c;
  for_panels(n, [&](int64_t n0, auto vectors) HWY_ATTR {
    Second too = second;
    if (too.b != nullptr) too.b += n0;
    product_panel<decltype(vectors)::value>(m, k, a, b + n0, ldb, too, from + n0, c + n0, ldc,
                                            start, shape, fetch);
  });
}

// to[n][m] = from[m][n]; both sizes are rounded up to multiples of 4.
[[maybe_unused]] static HWY_NOINLINE void transpose(int64_t m, int64_t n,
                                                    const float* HWY_RESTRICT from, int64_t ld_from,
                                                    float* HWY_RESTRICT to, int64_t ld_to) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) to[j * ld_to + i] = from[i * ld_from + j];
  }
#else
  const hn::FixedTag<float, 4> d;
  const hn::Repartition<double, decltype(d)> dd;
  for (int64_t i = 0; i < m; i += 4) {
    for (int64_t j = 0; j < n; j += 4) {
      const float* in = from + i * ld_from + j;
      const auto r0 = hn::LoadU(d, in), r1 = hn::LoadU(d, in + ld_from);
      const auto r2 = hn::LoadU(d, in + 2 * ld_from), r3 = hn::LoadU(d, in + 3 * ld_from);
      const auto a0 = hn::BitCast(dd, hn::InterleaveLower(d, r0, r1));
      const auto a1 = hn::BitCast(dd, hn::InterleaveLower(d, r2, r3));
      const auto a2 = hn::BitCast(dd, hn::InterleaveUpper(d, r0, r1));
      const auto a3 = hn::BitCast(dd, hn::InterleaveUpper(d, r2, r3));
      float* out = to + j * ld_to + i;
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, a0, a1)), d, out);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, a0, a1)), d, out + ld_to);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, a2, a3)), d, out + 2 * ld_to);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, a2, a3)), d, out + 3 * ld_to);
    }
  }
#endif
}

// One row of `n` values of `dtype` times `scale` into floats, zeros up to a multiple of 16.
[[maybe_unused]] static HWY_NOINLINE void load_row(const char* data, int32_t dtype, int64_t n,
                                                   float scale, float* HWY_RESTRICT to) {
  const DF d;
  const VF factor = hn::Set(d, scale);
  int64_t i = 0;
  if (dtype == HEED_FLOAT32) {
    const float* from = reinterpret_cast<const float*>(data);
    for (; i + kLanes <= n; i += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, from + i), factor), d, to + i);
    }
    for (; i < n; ++i) to[i] = from[i] * scale;
  } else {
    const hn::Rebind<uint16_t, DF> du16;
    const hn::RebindToUnsigned<DF> du;
    const hn::Rebind<hwy::float16_t, DF> dh;
    const uint16_t* from = reinterpret_cast<const uint16_t*>(data);
    auto widen = [&](const uint16_t* at) HWY_ATTR {
      const auto bits = hn::LoadU(du16, at);
      if (dtype == HEED_FLOAT16) return hn::PromoteTo(d, hn::BitCast(dh, bits));
      return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
    };
    for (; i + kLanes <= n; i += kLanes) {
      hn::StoreU(hn::Mul(widen(from + i), factor), d, to + i);
    }
    if (i < n) {
      HWY_ALIGN uint16_t rest[kLanes] = {};
      for (int64_t j = i; j < n; ++j) rest[j - i] = from[j];
      hn::StoreU(hn::Mul(widen(rest), factor), d, to + i);
      i = i + kLanes;
    }
  }
  for (const int64_t end = pad_to(n, 16); i < end; ++i) to[i] = 0;
}

// `rows` rows, `stride` bytes apart, into rows of `ld` floats, row i times `scale` and factors[i]
// if there are any.
[[maybe_unused]] static HWY_NOINLINE void load_rows(const char* data, int64_t stride, int32_t dtype,
                                                    int64_t rows, int64_t n, float scale,
                                                    const float* factors, float* HWY_RESTRICT to,
                                                    int64_t ld) {
  const DF d;
  const bool direct = dtype == HEED_FLOAT32 && n % 16 == 0;
  for (int64_t i = 0; i < rows; ++i, data += stride, to += ld) {
    const float by = factors == nullptr ? scale : scale * factors[i];
    if (!direct) {
      load_row(data, dtype, n, by, to);
      continue;
    }
    const float* from = reinterpret_cast<const float*>(data);
    const VF factor = hn::Set(d, by);
    for (int64_t j = 0; j < n; j += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, from + j), factor), d, to + j);
    }
  }
}

// The first `n` floats of a row as `dtype`, to the nearest, ties to even.
[[maybe_unused]] static HWY_NOINLINE void store_row(const float* HWY_RESTRICT from, int64_t n,
                                                    char* data, int32_t dtype) {
  const DF d;
  int64_t i = 0;
  if (dtype == HEED_FLOAT32) {
    float* to = reinterpret_cast<float*>(data);
    for (; i + kLanes <= n; i += kLanes) hn::StoreU(hn::LoadU(d, from + i), d, to + i);
    for (; i < n; ++i) to[i] = from[i];
    return;
  }
  // Highway's portable conversion to float16 rounds towards zero.
  if (!HEED_VECTOR_TARGET) {
    for (; i < n; ++i) store_element(data, dtype, i, from[i]);
    return;
  }
  const hn::Rebind<uint16_t, DF> du16;
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<hwy::float16_t, DF> dh;
  uint16_t* to = reinterpret_cast<uint16_t*>(data);
  auto narrow = [&](VF x) HWY_ATTR {
    if (dtype == HEED_FLOAT16) return hn::BitCast(du16, hn::DemoteTo(dh, x));
    const auto bits = hn::BitCast(du, x);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd));
    const auto nan = hn::RebindMask(du, hn::Ne(x, x));
    const auto safe = hn::IfThenElse(nan, hn::Set(du, 0x7fc0), rounded);
    return hn::DemoteTo(du16, hn::BitCast(hn::RebindToSigned<DF>(), safe));
  };
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(narrow(hn::LoadU(d, from + i)), du16, to + i);
  if (i < n) {
    HWY_ALIGN uint16_t rest[kLanes];
    hn::StoreU(narrow(hn::LoadU(d, from + i)), du16, rest);
    for (int64_t j = 0; i < n; ++i, ++j) to[i] = rest[j];
  }
}

// `rows` rows of `ld` floats to rows `stride` bytes apart.
[[maybe_unused]] static HWY_NOINLINE void store_rows(const float* HWY_RESTRICT from, int64_t ld,
                                                     int64_t rows, int64_t n, char* data,
                                                     int64_t stride, int32_t dtype) {
  const DF d;
  if (dtype != HEED_FLOAT32 || n % kLanes != 0) {
    for (int64_t i = 0; i < rows; ++i) store_row(from + i * ld, n, data + i * stride, dtype);
    return;
  }
  for (int64_t i = 0; i < rows; ++i, from += ld) {
    float* to = reinterpret_cast<float*>(data + i * stride);
    for (int64_t j = 0; j < n; j += kLanes) hn::StoreU(hn::LoadU(d, from + j), d, to + j);
  }
}

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void store_sums(VF a, VF b, VF c, VF e, float* to, const float* factors = nullptr) {
  int i = 0;
  for (const VF x : {a, b, c, e}) {
    to[i] = hn::GetLane(x) * (factors == nullptr ? 1 : factors[i]);
    ++i;
  }
}
#else
// The sum of the 128-bit parts of a vector.
template <class D>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4> > fold_to_four(D d, hn::Vec<D> x) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return x;
  } else {
    const hn::Half<D> half;
    return fold_to_four(half, hn::Add(hn::LowerHalf(half, x), hn::UpperHalf(half, x)));
  }
}

// The sums of four vectors, times four factors if there are any, as four floats to `to`.
HWY_INLINE void store_sums(VF a, VF b, VF c, VF e, float* to, const float* factors = nullptr) {
  const DF d;
  const hn::Repartition<double, DF> dd;
  const auto ab =
      hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  const auto ce =
      hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
  const VF sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(dd, ab, ce)),
                          hn::BitCast(d, hn::InterleaveUpper(dd, ab, ce)));
  const hn::FixedTag<float, 4> d4;
  auto four = fold_to_four(d, sums);
  if (factors != nullptr) four = hn::Mul(four, hn::LoadU(d4, factors));
  hn::StoreU(four, d4, to);
}
#endif

HWY_INLINE float row_dot(const float* a, const float* b, int64_t n) {  // over whole vectors
  const DF d;
  VF sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kLanes) {
    sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HEED_KERNEL_SIMD_TILE_INL_H_
