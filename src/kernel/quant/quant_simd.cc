// encode_rows and decode_rows, for every instruction set.
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/quant/quant_simd.cc"
#include "hwy/foreach_target.h"
//
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "hwy/highway.h"
#include "kernel/quant/quant-inl.h"

#ifndef HEED_KERNEL_QUANT_PLANES
#define HEED_KERNEL_QUANT_PLANES
namespace heed::kernel::quant {

// Codes of a row, `padded` of them, into its planes.
inline void pack_row(int bits, const uint8_t* code, int64_t padded, uint8_t* row) {
  for (int64_t first = 0; first < padded; first += kQuantChunk, code += kQuantChunk) {
    const int64_t n = std::min<int64_t>(kQuantChunk, padded - first);
    if (bits == 8) {
      row = std::copy_n(code, n, row);
      continue;
    }
    int shift = 0;
    if (bits >= 4) {
      for (int64_t i = 0; i < n / 2; ++i) {
        *row++ = static_cast<uint8_t>((code[i] & 15) | (code[i + n / 2] & 15) << 4);
      }
      shift = 4;
    }
    if (bits == 2 || bits == 3 || bits == 6) {
      for (int64_t i = 0; i < n / 4; ++i) {
        int byte = 0;
        for (int f = 0; f < 4; ++f) byte |= (code[i + f * n / 4] >> shift & 3) << (2 * f);
        *row++ = static_cast<uint8_t>(byte);
      }
      shift += 2;
    }
    if (bits == 3 || bits == 5) {
      for (int64_t i = 0; i < n / 8; ++i) {
        int byte = 0;
        for (int f = 0; f < 8; ++f) byte |= (code[8 * i + f] >> shift & 1) << f;
        *row++ = static_cast<uint8_t>(byte);
      }
    }
  }
}

// Levels of magnitude m and the thresholds between them, of a symmetric table of 2^b, b <= 5.
struct Magnitudes {
  int count;
  float level[16], threshold[15];

  explicit Magnitudes(int bits) : count(1 << (bits - 1)) {
    const int8_t* table = levels(bits) + count;
    for (int m = 0; m < count; ++m) level[m] = table[m];
    for (int m = 0; m + 1 < count; ++m) threshold[m] = (level[m] + level[m + 1]) / 2;
  }
};

}  // namespace heed::kernel::quant
#endif  // HEED_KERNEL_QUANT_PLANES

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::quant {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;  // for targets without vectors too: then of one lane

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;

// The level that is nearest to a number (in levels), and its code.
template <int kBits>
class Nearest {
 public:
  Nearest() : magnitudes_(std::min(kBits, 5)) {
    for (int level = -128; level < 128; ++level) codes_[level + 128] = find_code(level);
  }

  HWY_INLINE Vec level(Vec x) const {
    const Tag d;
    if constexpr (kBits == 8) {
      return hn::Round(hn::Clamp(x, hn::Set(d, -127.0f), hn::Set(d, 127.0f)));
    } else if constexpr (kBits == 6) {
      const Vec inside = hn::Clamp(x, hn::Set(d, -63.0f), hn::Set(d, 62.0f));
      const Vec low = hn::Floor(hn::Mul(inside, hn::Set(d, 0.5f)));
      return hn::MulAdd(low, hn::Set(d, 2.0f), hn::Set(d, 1.0f));
    } else {
      const Vec size = hn::Abs(x);
      Vec out = hn::Set(d, magnitudes_.level[0]);
      for (int m = 0; m + 1 < (1 << (kBits - 1)); ++m) {
        const Vec step = hn::Set(d, magnitudes_.level[m + 1] - magnitudes_.level[m]);
        const auto beyond = hn::Gt(size, hn::Set(d, magnitudes_.threshold[m]));
        out = hn::Add(out, hn::IfThenElseZero(beyond, step));
      }
      return hn::CopySign(out, x);
    }
  }
  uint8_t code(float level) const { return codes_[static_cast<int>(level) + 128]; }
  // Of a row that is all zero.
  float least() const { return kBits == 8 ? 0 : kBits == 6 ? 1 : magnitudes_.level[0]; }

 private:
  static uint8_t find_code(int level) {
    if constexpr (kBits == 8) return static_cast<uint8_t>(static_cast<int8_t>(level));
    if constexpr (kBits == 6) return static_cast<uint8_t>(std::clamp((level + 63) / 2, 0, 63));
    const int8_t* table = levels(kBits);
    const auto at = std::lower_bound(table, table + (1 << kBits) - 1, level) - table;
    return static_cast<uint8_t>(at);
  }

  Magnitudes magnitudes_;
  uint8_t codes_[256];
};

// The row less its centre, zero up to `room`. Returns its largest magnitude, NaN if a number is not
// finite.
inline float load_centred(const float* x, const float* centre, int64_t dim, int64_t room,
                          float* row) {
  float most = 0, poison = 0;
  for (int64_t i = 0; i < dim; ++i) {
    row[i] = x[i] - (centre ? centre[i] : 0.0f);
    most = std::max(most, std::abs(row[i]));
    poison += row[i] * 0.0f;
  }
  std::fill(row + dim, row + room, 0.0f);
  return most + poison;
}

// Levels of the row at scale s, and the scale of least squares for them.
template <int kBits>
HWY_INLINE float assign(const Nearest<kBits>& nearest, const float* row, int64_t dim, float s,
                        float* level) {
  const Tag d;
  const Vec inverse = hn::Set(d, 1 / s);
  Vec above = hn::Zero(d), below = hn::Zero(d);
  for (int64_t i = 0; i < dim; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    const Vec x = hn::LoadU(d, row + i);
    const Vec t = nearest.level(hn::Mul(x, inverse));
    const auto inside = hn::FirstN(d, static_cast<size_t>(dim - i));
    above = hn::MulAdd(x, t, above);  // x is 0 behind the end
    below = hn::MulAdd(t, hn::IfThenElseZero(inside, t), below);
    hn::StoreU(t, d, level + i);
  }
  const float squares = hn::GetLane(hn::SumOfLanes(d, below));
  return squares > 0 ? hn::GetLane(hn::SumOfLanes(d, above)) / squares : 0.0f;
}

// The levels of a row and their scale, 0 for a row of zeros.
template <int kBits>
float fit(const Nearest<kBits>& nearest, const float* row, float most, int64_t dim, float* level) {
  float squares = 0;
  for (int64_t i = 0; i < dim; ++i) squares += (row[i] / most) * (row[i] / most);
  const float gauss = most * std::sqrt(squares / static_cast<float>(dim)) / levels_a_unit(kBits);
  float s = kBits == 8 ? most / 127 : kBits == 6 ? std::min(most / 63, gauss) : gauss;
  for (int i = 0; i < (kBits == 8 ? 1 : 3) && s > 0; ++i) {
    const float better = assign(nearest, row, dim, s, level);
    if (better > 0) s = better;
  }
  return s;
}

template <int kBits>
HWY_NOINLINE void encode(const float* x, int64_t stride, int64_t count, int64_t dim,
                         const float* centre, uint8_t* codes, uint16_t* scales) {
  const int64_t room = (dim + 15) / 16 * 16, padded = (dim + 7) / 8 * 8;
  const Nearest<kBits> nearest;
  std::vector<float> row(room), level(room);
  std::vector<uint8_t> code(room);
  for (int64_t r = 0; r < count; ++r, codes += row_bytes(kBits, dim)) {
    const float most = load_centred(x + r * stride, centre, dim, room, row.data());
    std::fill(level.begin(), level.end(), nearest.least());
    float s = most > 0 ? fit(nearest, row.data(), most, dim, level.data()) : 0.0f;
    if (!std::isfinite(most) || !std::isfinite(s)) {
      s = std::numeric_limits<float>::quiet_NaN();
      std::fill(level.begin(), level.end(), nearest.least());
    }
    scales[r] = float_to_bfloat16(s);
    for (int64_t i = 0; i < padded; ++i) code[i] = nearest.code(level[i]);
    pack_row(kBits, code.data(), padded, codes);
  }
}

void EncodeTarget(int bits, const float* x, int64_t stride, int64_t count, int64_t dim,
                  const float* centre, uint8_t* codes, uint16_t* scales) {
  switch (bits) {
    case 2:
      return encode<2>(x, stride, count, dim, centre, codes, scales);
    case 3:
      return encode<3>(x, stride, count, dim, centre, codes, scales);
    case 4:
      return encode<4>(x, stride, count, dim, centre, codes, scales);
    case 5:
      return encode<5>(x, stride, count, dim, centre, codes, scales);
    case 6:
      return encode<6>(x, stride, count, dim, centre, codes, scales);
    default:
      return encode<8>(x, stride, count, dim, centre, codes, scales);
  }
}

void DecodeTarget(int bits, const uint8_t* codes, int64_t code_stride, const uint16_t* scales,
                  int64_t count, int64_t dim, const float* centre, float* out, int64_t stride) {
#if HEED_VECTOR_TARGET
  unpack_rows(bits, codes, code_stride, scales, count, dim, centre, out, stride);
#else
  for (int64_t r = 0; r < count; ++r) {
    const float s = bfloat16_to_float(scales[r]);
    for (int64_t i = 0; i < dim; ++i) {
      const auto level = static_cast<float>(quant_level(bits, codes + r * code_stride, dim, i));
      out[r * stride + i] = s * level + (centre ? centre[i] : 0.0f);
    }
  }
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace heed::kernel::quant
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {
namespace quant {

HWY_EXPORT(EncodeTarget);
HWY_EXPORT(DecodeTarget);

}  // namespace quant

void encode_rows(int bits, const float* x, int64_t stride, int64_t count, int64_t dim,
                 const float* centre, uint8_t* codes, uint16_t* scales) {
  using namespace quant;
  HWY_DYNAMIC_DISPATCH(EncodeTarget)(bits, x, stride, count, dim, centre, codes, scales);
}

void decode_rows(int bits, const uint8_t* codes, int64_t code_stride, const uint16_t* scales,
                 int64_t count, int64_t dim, const float* centre, float* out, int64_t stride) {
  using namespace quant;
  HWY_DYNAMIC_DISPATCH(DecodeTarget)
  (bits, codes, code_stride, scales, count, dim, centre, out, stride);
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
