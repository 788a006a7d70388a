// What the scans of the engine share: segments of tokens as rows of floats, and states kept at the
// start of each.
#include <algorithm>
#include <cstdint>

#include "kernel/call/scratch.h"
#include "kernel/ewscan/ewscan.h"

#if defined(HEED_KERNEL_EWSCAN_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_KERNEL_EWSCAN_ROWS_INL_H_
#undef HEED_KERNEL_EWSCAN_ROWS_INL_H_
#else
#define HEED_KERNEL_EWSCAN_ROWS_INL_H_
#endif

#include "kernel/simd/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

constexpr int64_t kSegment = kEwscanSegment;

// How many segments lie before sequence n (n = N: how many there are).
HWY_INLINE int64_t segments_before(const heed_call& head, int64_t time, int64_t n) {
  if (head.cu_seqlens == nullptr) return n * ((time + kSegment - 1) / kSegment);
  int64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += (head.cu_seqlens[i + 1] - head.cu_seqlens[i] + kSegment - 1) / kSegment;
  }
  return sum;
}

// `length` rows of `width` numbers from token `t` on, `first` being the index behind B and T.
HWY_INLINE void load_tokens(const heed_view& v, int64_t b, int64_t t, int64_t length, int64_t first,
                            int64_t width, float* to, int64_t ld) {
  load_rows(at(v, b, t, first), v.strides[1] * dtype_size(v.dtype), v.dtype, length, width, 1,
            nullptr, to, ld);
}
HWY_INLINE void store_tokens(const float* from, int64_t ld, const heed_view& v, int64_t b,
                             int64_t t, int64_t length, int64_t first, int64_t width) {
  if (v.data == nullptr) return;
  store_rows(from, ld, length, width, at(v, b, t, first), v.strides[1] * dtype_size(v.dtype),
             v.dtype);
}

// A [C,K] float32 matrix's rows [c, c + width) as columns: to[k][i], zeros in the padding; absent:
// all zeros. `tile` has room for pad_to(width, 4) rows of pad_to(K, 16).
HWY_INLINE void load_columns(const char* rows, int64_t stride, int64_t width, int64_t k,
                             float* tile, float* to, int64_t ld) {
  const int64_t row = pad_to(k, 16), ks = pad_to(k, 4);
  std::fill_n(to, ks * ld, 0.0f);
  if (rows == nullptr) return;
  std::fill_n(tile, pad_to(width, 4) * row, 0.0f);
  load_rows(rows, stride, HEED_FLOAT32, width, k, 1, nullptr, tile, row);
  transpose(width, ks, tile, row, to, ld);
}
HWY_INLINE void store_columns(const float* from, int64_t ld, int64_t width, int64_t k, float* tile,
                              float* rows, int64_t stride) {
  const int64_t row = pad_to(k, 16);
  transpose(pad_to(k, 4), width, from, ld, tile, row);
  store_rows(tile, row, width, k, reinterpret_cast<char*>(rows), stride * 4, HEED_FLOAT32);
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HEED_KERNEL_EWSCAN_ROWS_INL_H_
