#include "io/quantise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "io/error.h"

// Products and sums must round one by one, as in ggml: a fused multiply-add would change bits.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace heed {
namespace {

constexpr int kQuantBlock = 32;

void put_half(float value, std::byte* out) {
  const uint16_t bits = half_from_float(value);
  std::memcpy(out, &bits, sizeof bits);
}

void q8_0(const float* x, std::byte* out) {
  float most = 0;
  for (int i = 0; i < kQuantBlock; ++i) most = std::max(most, std::fabs(x[i]));
  const float d = most / 127, inverse = d != 0 ? 1 / d : 0;
  put_half(d, out);
  for (int i = 0; i < kQuantBlock; ++i) {
    out[2 + i] = static_cast<std::byte>(static_cast<int8_t>(std::roundf(x[i] * inverse)));
  }
}

// The number of the largest size, with its sign, becomes -8.
void q4_0(const float* x, std::byte* out) {
  float most = 0;
  for (int i = 0; i < kQuantBlock; ++i) {
    if (std::fabs(x[i]) > std::fabs(most)) most = x[i];
  }
  const float d = most / -8, inverse = d != 0 ? 1 / d : 0;
  put_half(d, out);
  const auto code = [&](float value) {
    return std::min(15, static_cast<int>(static_cast<int8_t>(value * inverse + 8.5f)));
  };
  for (int i = 0; i < kQuantBlock / 2; ++i) {
    out[2 + i] = static_cast<std::byte>(code(x[i]) | code(x[i + kQuantBlock / 2]) << 4);
  }
}

void q4_1(const float* x, std::byte* out) {
  const auto [low, high] = std::minmax_element(x, x + kQuantBlock);
  const float least = *low, d = (*high - least) / 15, inverse = d != 0 ? 1 / d : 0;
  put_half(d, out);
  put_half(least, out + 2);
  const auto code = [&](float value) {
    return std::min(15, static_cast<int>(static_cast<int8_t>((value - least) * inverse + 0.5f)));
  };
  for (int i = 0; i < kQuantBlock / 2; ++i) {
    out[4 + i] = static_cast<std::byte>(code(x[i]) | code(x[i + kQuantBlock / 2]) << 4);
  }
}

template <uint16_t (*kConvert)(float)>
void to_halves(const float* values, int64_t count, std::byte* out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = kConvert(values[i]);
    std::memcpy(out + 2 * i, &bits, sizeof bits);
  }
}

template <void (*kBlock)(const float*, std::byte*)>
void to_blocks(DType dtype, const float* values, int64_t count, std::byte* out) {
  for (int64_t b = 0; b < count / kQuantBlock; ++b) {
    kBlock(values + b * kQuantBlock, out + b * dtype_info(dtype).bytes);
  }
}

}  // namespace

uint16_t half_from_float(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const float size = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7E00);
  if (size >= 65520) return static_cast<uint16_t>(sign | 0x7C00);
  // Adding a number whose last place is that of the result rounds there.
  if (size < 0x1p-14f) {
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(size + 0.5f) - 0x3F000000u));
  }
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1) - 0x38000000u;
  return static_cast<uint16_t>(sign | rounded >> 13);
}

uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

bool can_quantise(DType dtype) {
  return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16 ||
         dtype == DType::Q8_0 || dtype == DType::Q4_0 || dtype == DType::Q4_1;
}

void quantise(DType dtype, const float* values, int64_t count, std::byte* out) {
  if (count < 0 || count % dtype_info(dtype).block != 0) {
    throw Error("{} numbers are not whole blocks of {} ({})", count, dtype_info(dtype).block,
                dtype_name(dtype));
  }
  switch (dtype) {
    case DType::F32:
      std::memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::F16:
      return to_halves<half_from_float>(values, count, out);
    case DType::BF16:
      return to_halves<bfloat16_from_float>(values, count, out);
    case DType::Q8_0:
      return to_blocks<q8_0>(dtype, values, count, out);
    case DType::Q4_0:
      return to_blocks<q4_0>(dtype, values, count, out);
    case DType::Q4_1:
      return to_blocks<q4_1>(dtype, values, count, out);
    default:
      throw Error("weights are not written as {}; known are F32, F16, BF16, Q8_0, Q4_0, Q4_1",
                  dtype_name(dtype));
  }
}

}  // namespace heed
