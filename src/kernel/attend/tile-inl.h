// The vector building blocks of attend, compiled once a target: 2^x, loads of any storage type, the
// matrix micro-kernel, packing of keys and values.
#if defined(HEED_KERNEL_ATTEND_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_KERNEL_ATTEND_TILE_INL_H_
#undef HEED_KERNEL_ATTEND_TILE_INL_H_
#else
#define HEED_KERNEL_ATTEND_TILE_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernel/simd_dtype.h"
#include "kernel/simd_targets.h"

#if HEED_VECTOR_TARGET
HWY_BEFORE_NAMESPACE();
namespace heed::kernel::attend {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
// Vectors side by side in the micro-kernel: kGroup * kColumns accumulators fill the registers.
inline constexpr int kColumns = HWY_TARGET == HWY_AVX2 ? 2 : 4;
inline constexpr int kPanel = kColumns * kLanes;  // keys of a packed panel

template <class T>
HWY_INLINE Vec load(const T* p) {
  if constexpr (std::is_same_v<T, float>) {
    return hn::LoadU(Tag(), p);
  } else {
    return hn::PromoteTo(Tag(), hn::LoadU(hn::Rebind<T, Tag>(), p));
  }
}

HWY_INLINE float to_float(float x) { return x; }
HWY_INLINE float to_float(hwy::bfloat16_t x) { return hwy::F32FromBF16(x); }
HWY_INLINE float to_float(hwy::float16_t x) { return float16_to_float(std::bit_cast<uint16_t>(x)); }

// 2^x for x <= 126, relative error below 1.5e-7; exactly 0 for x <= -127. NaN stays NaN (the order
// of Max's arguments matters for that on x86). x = n + f with |f| <= 1/2 by adding 1.5 * 2^23; 2^f
// by the polynomial of least relative error with p(0) = 1 (9.2e-8); n goes into the exponent.
HWY_INLINE Vec exp2_vec(Vec x) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const Vec magic = hn::Set(d, 12582912.0f);
  x = hn::Max(hn::Set(d, -127.0f), x);
  const Vec shifted = hn::Add(x, magic);
  const Vec f = hn::Sub(x, hn::Sub(shifted, magic));
  Vec p = hn::Set(d, 0.001326472731307149f);
  p = hn::MulAdd(p, f, hn::Set(d, 0.009671512991189957f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.05550733581185341f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.24022242426872253f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.6931470036506653f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

// Rows read in place are asked for kAheadBytes before they are used; memory that nobody reads may
// be asked for too, which does nothing. Where a segment ends (a page of a cache), the next one's
// rows are asked for: from row `rows` on the distance is `far` in place of `near`. Both in bytes.
inline constexpr ptrdiff_t kAheadBytes = 8192;
struct Ahead {
  int64_t rows = 0;
  ptrdiff_t near = 0, far = 0;

  HWY_INLINE ptrdiff_t of(int64_t row) const { return row < rows ? near : far; }
};

template <class T>
HWY_INLINE void prefetch_row(const T* row, ptrdiff_t distance, int vectors) {
  const auto at = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(distance);
  const ptrdiff_t bytes = vectors * kLanes * static_cast<ptrdiff_t>(sizeof(T));
  for (ptrdiff_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(at + static_cast<uintptr_t>(i)), 0, 2);
  }
}

// What the micro-kernel does with its sums: C = AB, C = diag(factor) C + AB.
enum class Into { kSet, kScale };

// C (R rows, NV vectors) from A (R x depth) and B (depth rows of NV vectors): element (r, k) of A
// is a[r * kRowStride + k * a_k]; row k of B is at b + k * b_k. Sums of one call start from zero,
// so that rounding errors do not grow with the number of tiles added into C. kFetch: B is read in
// place.
template <int R, int NV, int kRowStride, Into kInto, bool kFetch, class T>
HWY_INLINE void micro_kernel(const float* a, ptrdiff_t a_k, const T* b, ptrdiff_t b_k,
                             int64_t depth, float* c, ptrdiff_t c_row, const float* factor,
                             const Ahead& ahead) {
  const Tag d;
  Vec acc[R][NV];
  HWY_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    HWY_UNROLL(8)
    for (int j = 0; j < NV; ++j) acc[r][j] = hn::Zero(d);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[NV];
    HWY_UNROLL(8)
    for (int j = 0; j < NV; ++j) row[j] = load(b + j * kLanes);
    if constexpr (kFetch) prefetch_row(b, ahead.of(k), NV);
    HWY_UNROLL(8)
    for (int r = 0; r < R; ++r) {
      const Vec x = hn::Set(d, a[r * kRowStride]);
      HWY_UNROLL(8)
      for (int j = 0; j < NV; ++j) acc[r][j] = hn::MulAdd(x, row[j], acc[r][j]);
    }
    a += a_k;
    b += b_k;
  }
  HWY_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    float* out = c + r * c_row;
    const Vec x = kInto == Into::kScale ? hn::Set(d, factor[r]) : hn::Zero(d);
    HWY_UNROLL(8)
    for (int j = 0; j < NV; ++j) {
      Vec sum = acc[r][j];
      if constexpr (kInto == Into::kScale) {
        sum = hn::MulAdd(hn::LoadU(d, out + j * kLanes), x, sum);
      }
      hn::StoreU(sum, d, out + j * kLanes);
    }
  }
}

template <int NV, int kRowStride, Into kInto, bool kFetch, class T>
HWY_NOINLINE void micro_rows(int rows, const float* a, ptrdiff_t a_k, const T* b, ptrdiff_t b_k,
                             int64_t depth, float* c, ptrdiff_t c_row, const float* factor,
                             const Ahead& ahead) {
  switch (rows) {
    case 1:
      return micro_kernel<1, NV, kRowStride, kInto, kFetch>(a, a_k, b, b_k, depth, c, c_row, factor,
                                                            ahead);
    case 2:
      return micro_kernel<2, NV, kRowStride, kInto, kFetch>(a, a_k, b, b_k, depth, c, c_row, factor,
                                                            ahead);
    case 3:
      return micro_kernel<3, NV, kRowStride, kInto, kFetch>(a, a_k, b, b_k, depth, c, c_row, factor,
                                                            ahead);
    case 4:
      return micro_kernel<4, NV, kRowStride, kInto, kFetch>(a, a_k, b, b_k, depth, c, c_row, factor,
                                                            ahead);
    case 5:
      return micro_kernel<5, NV, kRowStride, kInto, kFetch>(a, a_k, b, b_k, depth, c, c_row, factor,
                                                            ahead);
    default:
      return micro_kernel<6, NV, kRowStride, kInto, kFetch>(a, a_k, b, b_k, depth, c, c_row, factor,
                                                            ahead);
  }
}

// The same for `vectors` columns of vectors and at most kGroup rows; B's columns lie in chunks of
// kColumns vectors, b_chunk elements apart.
template <int kRowStride, Into kInto, bool kFetch = false, class T>
HWY_INLINE void multiply(int rows, const float* a, ptrdiff_t a_k, const T* b, ptrdiff_t b_k,
                         ptrdiff_t b_chunk, int64_t depth, float* c, ptrdiff_t c_row, int vectors,
                         const float* factor, const Ahead& ahead = {}) {
  for (; vectors >= kColumns; vectors -= kColumns, b += b_chunk, c += kPanel) {
    micro_rows<kColumns, kRowStride, kInto, kFetch>(rows, a, a_k, b, b_k, depth, c, c_row, factor,
                                                    ahead);
  }
  if constexpr (kColumns > 2) {
    if (vectors >= 2) {
      micro_rows<2, kRowStride, kInto, kFetch>(rows, a, a_k, b, b_k, depth, c, c_row, factor,
                                               ahead);
      vectors -= 2, b += 2 * kLanes, c += 2 * kLanes;
    }
  }
  if (vectors == 1) {
    micro_rows<1, kRowStride, kInto, kFetch>(rows, a, a_k, b, b_k, depth, c, c_row, factor, ahead);
  }
}

// Stores the 128-bit blocks of v at p, p + stride, ...
template <class D>
HWY_INLINE void store_blocks(D d, hn::Vec<D> v, float* p, ptrdiff_t stride) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    hn::StoreU(v, d, p);
  } else {
    const hn::Half<D> half;
    store_blocks(half, hn::LowerHalf(half, v), p, stride);
    store_blocks(half, hn::UpperHalf(half, v), p + stride * (hn::MaxLanes(D()) / 8), stride);
  }
}

// The sum of the 128-bit blocks of v.
template <class D>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> sum_blocks(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return sum_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

// Writes elements [from, to) of four keys as columns: out[d * kPanel + 0..3].
template <class T>
HWY_INLINE void transpose_four(const T* k0, const T* k1, const T* k2, const T* k3, int from, int to,
                               float* out) {
  const Tag d;
  const hn::Repartition<uint64_t, Tag> d64;
  const auto pair = [](hn::Vec<decltype(d64)> v) HWY_ATTR { return hn::BitCast(Tag(), v); };
  int i = from;
  for (; i + kLanes <= to; i += kLanes) {
    const Vec a = load(k0 + i), b = load(k1 + i), e = load(k2 + i), f = load(k3 + i);
    const auto ab = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
    const auto ef = hn::BitCast(d64, hn::InterleaveLower(d, e, f));
    const auto ab_up = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
    const auto ef_up = hn::BitCast(d64, hn::InterleaveUpper(d, e, f));
    float* at = out + static_cast<ptrdiff_t>(i) * kPanel;
    store_blocks(d, pair(hn::InterleaveLower(d64, ab, ef)), at, 4 * kPanel);
    store_blocks(d, pair(hn::InterleaveUpper(d64, ab, ef)), at + kPanel, 4 * kPanel);
    store_blocks(d, pair(hn::InterleaveLower(d64, ab_up, ef_up)), at + 2 * kPanel, 4 * kPanel);
    store_blocks(d, pair(hn::InterleaveUpper(d64, ab_up, ef_up)), at + 3 * kPanel, 4 * kPanel);
  }
  for (; i < to; ++i) {
    float* at = out + static_cast<ptrdiff_t>(i) * kPanel;
    at[0] = to_float(k0[i]), at[1] = to_float(k1[i]);
    at[2] = to_float(k2[i]), at[3] = to_float(k3[i]);
  }
}

// Copies one row as float32, zero up to the next multiple of 16. Returns NaN lanes if an element is
// not finite (added to `finite`, which starts at zero).
template <class T>
HWY_INLINE Vec copy_row(const T* from, int dim, float* to, Vec finite) {
  const Tag d;
  int i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    const Vec x = load(from + i);
    finite = hn::MulAdd(x, hn::Zero(d), finite);
    hn::StoreU(x, d, to + i);
  }
  float tail = 0;
  for (; i < dim; ++i) {
    to[i] = to_float(from[i]);
    tail += to[i] * 0.0f;
  }
  for (; i % 16 != 0; ++i) to[i] = 0;
  return hn::Add(finite, hn::Set(d, tail));
}

HWY_INLINE bool all_finite(Vec finite) {
  return hn::AllTrue(Tag(), hn::Eq(finite, hn::Zero(Tag())));
}

}  // namespace HWY_NAMESPACE
}  // namespace heed::kernel::attend
HWY_AFTER_NAMESPACE();
#endif  // HEED_VECTOR_TARGET

#endif  // HEED_KERNEL_ATTEND_TILE_INL_H_
