// One element of a tensor of any floating dtype, converted one by one: for references, edges and
// tests. Rounding to bfloat16 and float16 is to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "heed/view.h"

namespace heed::kernel {

inline int64_t dtype_size(int32_t dtype) {
  switch (dtype) {
    case HEED_FLOAT32:
    case HEED_INT32:
      return 4;
    case HEED_BFLOAT16:
    case HEED_FLOAT16:
      return 2;
    case HEED_FLOAT64:
    case HEED_INT64:
      return 8;
    case HEED_UINT8:
      return 1;
    default:
      return 0;
  }
}

inline float bfloat16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
    return static_cast<uint16_t>((bits >> 16) | 0x40u);  // NaN
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline float float16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu;
  const uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

inline uint16_t float_to_float16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;   // NaN
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // rounds to infinity
  if (magnitude < 0x38800000u) {                        // subnormal: a multiple of 2^-24
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    return sign | static_cast<uint16_t>(std::nearbyint(scaled));
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

inline double load_element(const void* data, int32_t dtype, int64_t i) {
  switch (dtype) {
    case HEED_FLOAT64:
      return static_cast<const double*>(data)[i];
    case HEED_BFLOAT16:
      return bfloat16_to_float(static_cast<const uint16_t*>(data)[i]);
    case HEED_FLOAT16:
      return float16_to_float(static_cast<const uint16_t*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

inline void store_element(void* data, int32_t dtype, int64_t i, double value) {
  switch (dtype) {
    case HEED_FLOAT64:
      static_cast<double*>(data)[i] = value;
      break;
    case HEED_BFLOAT16:
      static_cast<uint16_t*>(data)[i] = float_to_bfloat16(static_cast<float>(value));
      break;
    case HEED_FLOAT16:
      static_cast<uint16_t*>(data)[i] = float_to_float16(static_cast<float>(value));
      break;
    default:
      static_cast<float*>(data)[i] = static_cast<float>(value);
  }
}

}  // namespace heed::kernel
