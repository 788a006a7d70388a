// Rows in few bits as float32, one row after another: what attend and decode_rows unpack with.
#if defined(HEED_KERNEL_QUANT_QUANT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_KERNEL_QUANT_QUANT_INL_H_
#undef HEED_KERNEL_QUANT_QUANT_INL_H_
#else
#define HEED_KERNEL_QUANT_QUANT_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "kernel/quant/quant.h"
#include "kernel/simd_dtype.h"
#include "kernel/simd_targets.h"

#if HEED_VECTOR_TARGET
HWY_BEFORE_NAMESPACE();
namespace heed::kernel::quant {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Bytes = hn::FixedTag<uint8_t, 16>;
using Levels = hn::FixedTag<int8_t, 16>;

// The tables of one number of bits, in registers.
template <int kBits>
struct Tables {
  hn::Vec<Levels> low, high;  // b = 5: entries 0..15 and 16..31

  HWY_INLINE Tables() {
    const Levels d;
    if constexpr (kBits <= 5) {
      low = hn::LoadU(d, levels(kBits));
      high = kBits == 5 ? hn::LoadU(d, levels(kBits) + 16) : low;
    } else {
      low = high = hn::Zero(d);
    }
  }
};

// Levels of numbers 16 kBlock .. 16 kBlock + 15 of a whole chunk.
template <int kBits, int kBlock>
HWY_INLINE hn::Vec<Levels> block_levels(const uint8_t* row, const Tables<kBits>& tables) {
  const Bytes d;
  const Levels di;
  if constexpr (kBits == 8)
    return hn::LoadU(di, reinterpret_cast<const int8_t*>(row) + 16 * kBlock);
  auto code = hn::Zero(d);
  if constexpr (kBits >= 4) {
    const auto bytes = hn::LoadU(d, row + 16 * (kBlock % 2));
    code = kBlock < 2 ? hn::And(bytes, hn::Set(d, uint8_t{15})) : hn::ShiftRight<4>(bytes);
    row += 32;
  }
  if constexpr (kBits == 2 || kBits == 3 || kBits == 6) {
    const auto two = hn::And(hn::ShiftRight<2 * kBlock>(hn::LoadU(d, row)), hn::Set(d, uint8_t{3}));
    code = kBits == 6 ? hn::Or(code, hn::ShiftLeft<4>(two)) : two;
    row += 16;
  }
  if constexpr (kBits == 6) {
    return hn::BitCast(di, hn::Sub(hn::Add(code, code), hn::Set(d, uint8_t{63})));
  } else if constexpr (kBits == 3) {
    const auto bit = hn::LoadMaskBits(d, row + 2 * kBlock);
    code = hn::Or(code, hn::IfThenElseZero(bit, hn::Set(d, uint8_t{4})));
    return hn::TableLookupBytes(tables.low, hn::BitCast(di, code));
  } else if constexpr (kBits == 5) {
    const auto bit = hn::LoadMaskBits(di, row + 2 * kBlock);
    return hn::IfThenElse(bit, hn::TableLookupBytes(tables.high, hn::BitCast(di, code)),
                          hn::TableLookupBytes(tables.low, hn::BitCast(di, code)));
  } else {
    return hn::TableLookupBytes(tables.low, hn::BitCast(di, code));
  }
}

// out[i] = centre[i] + scale levels[i], as many as `levels` has; centre may be NULL.
template <class D>
HWY_INLINE void store_levels(D d8, hn::Vec<D> levels, float scale, const float* centre,
                             float* out) {
  if constexpr (hn::MaxLanes(D()) > hn::MaxLanes(hn::ScalableTag<float>())) {
    const hn::Half<D> half;
    constexpr auto kHalf = static_cast<int64_t>(hn::MaxLanes(hn::Half<D>()));
    store_levels(half, hn::LowerHalf(half, levels), scale, centre, out);
    store_levels(half, hn::UpperHalf(half, levels), scale, centre ? centre + kHalf : nullptr,
                 out + kHalf);
  } else {
    const hn::Rebind<float, D> d;
    const hn::Rebind<int32_t, D> d32;
    const auto x = hn::ConvertTo(d, hn::PromoteTo(d32, levels));
    const auto middle = centre ? hn::LoadU(d, centre) : hn::Zero(d);
    hn::StoreU(hn::MulAdd(x, hn::Set(d, scale), middle), d, out);
  }
}

template <int kBits>
HWY_INLINE void unpack_row(const uint8_t* row, float scale, int64_t dim, const float* centre,
                           const Tables<kBits>& tables, float* out) {
  int64_t i = 0;
  const uint8_t* chunk = row;
  for (; i + kQuantChunk <= dim; i += kQuantChunk, chunk += kQuantChunk / 8 * kBits) {
    const auto at = [&](int j) { return centre ? centre + i + j : nullptr; };
    store_levels(Levels(), block_levels<kBits, 0>(chunk, tables), scale, at(0), out + i);
    store_levels(Levels(), block_levels<kBits, 1>(chunk, tables), scale, at(16), out + i + 16);
    store_levels(Levels(), block_levels<kBits, 2>(chunk, tables), scale, at(32), out + i + 32);
    store_levels(Levels(), block_levels<kBits, 3>(chunk, tables), scale, at(48), out + i + 48);
  }
  for (; i < dim; ++i) {
    out[i] =
        scale * static_cast<float>(quant_level(kBits, row, dim, i)) + (centre ? centre[i] : 0.0f);
  }
}

// Rows [count, dim] to out, `stride` apart.
template <int kBits>
HWY_NOINLINE void unpack_rows(const uint8_t* codes, int64_t code_stride, const uint16_t* scales,
                              int64_t count, int64_t dim, const float* centre, float* out,
                              int64_t stride) {
  const Tables<kBits> tables;
  for (int64_t r = 0; r < count; ++r) {
    unpack_row<kBits>(codes + r * code_stride, bfloat16_to_float(scales[r]), dim, centre, tables,
                      out + r * stride);
  }
}

HWY_INLINE void unpack_rows(int bits, const uint8_t* codes, int64_t code_stride,
                            const uint16_t* scales, int64_t count, int64_t dim, const float* centre,
                            float* out, int64_t stride) {
  const auto with = [&](auto b) HWY_ATTR {
    unpack_rows<decltype(b)::value>(codes, code_stride, scales, count, dim, centre, out, stride);
  };
  switch (bits) {
    case 2:
      return with(std::integral_constant<int, 2>());
    case 3:
      return with(std::integral_constant<int, 3>());
    case 4:
      return with(std::integral_constant<int, 4>());
    case 5:
      return with(std::integral_constant<int, 5>());
    case 6:
      return with(std::integral_constant<int, 6>());
    default:
      return with(std::integral_constant<int, 8>());
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed::kernel::quant
HWY_AFTER_NAMESPACE();
#endif  // HEED_VECTOR_TARGET

#endif  // HEED_KERNEL_QUANT_QUANT_INL_H_
