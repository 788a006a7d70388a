#include "io/dequant.h"

#include <bit>
#include <cstring>

#include "io/describe.h"
#include "io/error.h"

// Products and sums must round one by one, as in ggml: a fused multiply-add would change bits.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace heed {
namespace {

constexpr const char* kAdvice =
    "convert the model to one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";

// Blocks as ggml-common.h lays them out. All members are bytes, so that a block may lie anywhere.
struct Half {
  uint8_t low, high;
  float value() const { return float_from_half(static_cast<uint16_t>(low | high << 8)); }
};
struct BlockQ4_0 {
  Half d;
  uint8_t qs[16];
};
struct BlockQ4_1 {
  Half d, m;
  uint8_t qs[16];
};
struct BlockQ5_0 {
  Half d;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct BlockQ5_1 {
  Half d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct BlockQ8_0 {
  Half d;
  int8_t qs[32];
};
struct BlockQ4_K {
  Half d, dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};
struct BlockQ5_K {
  Half d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  Half d;
};
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// The low nibbles are the first half of a block, the high ones the second.
void expand(const BlockQ4_0& block, float* out) {
  const float d = block.d.value();
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((block.qs[i] & 0x0F) - 8);
    out[i + 16] = d * static_cast<float>((block.qs[i] >> 4) - 8);
  }
}

void expand(const BlockQ4_1& block, float* out) {
  const float d = block.d.value();
  const float m = block.m.value();
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(block.qs[i] & 0x0F) + m;
    out[i + 16] = d * static_cast<float>(block.qs[i] >> 4) + m;
  }
}

// Bit i of `qh` is the fifth bit of element i.
void expand(const BlockQ5_0& block, float* out) {
  const float d = block.d.value();
  uint32_t qh;
  std::memcpy(&qh, block.qh, sizeof qh);
  for (int i = 0; i < 16; ++i) {
    const int low = static_cast<int>((block.qs[i] & 0x0F) | ((qh >> i & 1) << 4));
    const int high = static_cast<int>((block.qs[i] >> 4) | ((qh >> (i + 16) & 1) << 4));
    out[i] = d * static_cast<float>(low - 16);
    out[i + 16] = d * static_cast<float>(high - 16);
  }
}

void expand(const BlockQ5_1& block, float* out) {
  const float d = block.d.value();
  const float m = block.m.value();
  uint32_t qh;
  std::memcpy(&qh, block.qh, sizeof qh);
  for (int i = 0; i < 16; ++i) {
    const int low = static_cast<int>((block.qs[i] & 0x0F) | ((qh >> i & 1) << 4));
    const int high = static_cast<int>((block.qs[i] >> 4) | ((qh >> (i + 16) & 1) << 4));
    out[i] = d * static_cast<float>(low) + m;
    out[i + 16] = d * static_cast<float>(high) + m;
  }
}

void expand(const BlockQ8_0& block, float* out) {
  const float d = block.d.value();
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(block.qs[i]);
}

struct ScaleMin {
  float scale, min;
};

// Six-bit scale and minimum of sub-block j (0..7): bytes 0-3 hold scales 0-3, bytes 4-7 minima
// 0-3; 4-7 of both have their low nibbles in bytes 8-11 and their two high bits on top of the
// first.
ScaleMin scale_min(const uint8_t* scales, int j) {
  if (j < 4) {
    return {static_cast<float>(scales[j] & 63), static_cast<float>(scales[j + 4] & 63)};
  }
  return {static_cast<float>((scales[j + 4] & 0x0F) | (scales[j - 4] >> 6 << 4)),
          static_cast<float>((scales[j + 4] >> 4) | (scales[j] >> 6 << 4))};
}

void expand(const BlockQ4_K& block, float* out) {
  const float d = block.d.value();
  const float dmin = block.dmin.value();
  for (int pair = 0; pair < 4; ++pair) {  // 64 elements: low nibbles, then high ones
    const ScaleMin a = scale_min(block.scales, 2 * pair);
    const ScaleMin b = scale_min(block.scales, 2 * pair + 1);
    const float scale_a = d * a.scale, min_a = dmin * a.min;
    const float scale_b = d * b.scale, min_b = dmin * b.min;
    const uint8_t* qs = block.qs + 32 * pair;
    float* to = out + 64 * pair;
    for (int i = 0; i < 32; ++i) {
      to[i] = scale_a * static_cast<float>(qs[i] & 0x0F) - min_a;
      to[i + 32] = scale_b * static_cast<float>(qs[i] >> 4) - min_b;
    }
  }
}

// Bit j of qh[i] is the fifth bit of element i of sub-block j.
void expand(const BlockQ5_K& block, float* out) {
  const float d = block.d.value();
  const float dmin = block.dmin.value();
  for (int pair = 0; pair < 4; ++pair) {
    const ScaleMin a = scale_min(block.scales, 2 * pair);
    const ScaleMin b = scale_min(block.scales, 2 * pair + 1);
    const float scale_a = d * a.scale, min_a = dmin * a.min;
    const float scale_b = d * b.scale, min_b = dmin * b.min;
    const uint8_t* qs = block.qs + 32 * pair;
    float* to = out + 64 * pair;
    for (int i = 0; i < 32; ++i) {
      const int high = block.qh[i] >> (2 * pair);
      to[i] = scale_a * static_cast<float>((qs[i] & 0x0F) | ((high & 1) << 4)) - min_a;
      to[i + 32] = scale_b * static_cast<float>((qs[i] >> 4) | ((high >> 1 & 1) << 4)) - min_b;
    }
  }
}

// Two halves of 128: 64 bytes of low nibbles and 32 of two high bits for four groups of 32, with a
// scale for every 16 elements.
void expand(const BlockQ6_K& block, float* out) {
  const float d = block.d.value();
  for (int half = 0; half < 2; ++half) {
    const uint8_t* ql = block.ql + 64 * half;
    const uint8_t* qh = block.qh + 32 * half;
    for (int part = 0; part < 2; ++part) {  // elements 16 part .. 16 part + 15 of each group
      const int8_t* scales = block.scales + 8 * half + part;
      const float s0 = d * static_cast<float>(scales[0]);
      const float s1 = d * static_cast<float>(scales[2]);
      const float s2 = d * static_cast<float>(scales[4]);
      const float s3 = d * static_cast<float>(scales[6]);
      float* to = out + 128 * half;
      for (int i = 16 * part; i < 16 * part + 16; ++i) {
        to[i] = s0 * static_cast<float>(((ql[i] & 0x0F) | ((qh[i] & 3) << 4)) - 32);
        to[i + 32] = s1 * static_cast<float>(((ql[i + 32] & 0x0F) | ((qh[i] >> 2 & 3) << 4)) - 32);
        to[i + 64] = s2 * static_cast<float>(((ql[i] >> 4) | ((qh[i] >> 4 & 3) << 4)) - 32);
        to[i + 96] = s3 * static_cast<float>(((ql[i + 32] >> 4) | (qh[i] >> 6 << 4)) - 32);
      }
    }
  }
}

template <typename Block, int kElements>
void expand_all(const std::byte* source, int64_t count, float* out) {
  const auto* blocks = reinterpret_cast<const Block*>(source);
  for (int64_t b = 0; b < count / kElements; ++b) expand(blocks[b], out + b * kElements);
}

template <float (*kConvert)(uint16_t)>
void convert_all(const std::byte* source, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, source + 2 * i, sizeof bits);
    out[i] = kConvert(bits);
  }
}

inline float half_to_float(uint16_t half) {
  // Without branches: a normal number is shifted into place and its exponent corrected by a
  // product with 2^-112 (which keeps infinity and NaN); a subnormal is its fraction put below 0.5,
  // less 0.5. Both steps are exact.
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(half & 0x7FFF);
  const float normal = std::bit_cast<float>((rest << 13) + (uint32_t{0xE0} << 23)) * 0x1.0p-112f;
  const float subnormal = std::bit_cast<float>(rest | (uint32_t{126} << 23)) - 0.5f;
  const uint32_t bits =
      rest < 0x400 ? std::bit_cast<uint32_t>(subnormal) : std::bit_cast<uint32_t>(normal);
  return std::bit_cast<float>(bits | sign);
}

inline float bfloat16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

}  // namespace

float float_from_half(uint16_t bits) { return half_to_float(bits); }
float float_from_bfloat16(uint16_t bits) { return bfloat16_to_float(bits); }

bool can_dequantize(DType dtype) {
  switch (dtype) {
    case DType::F32:
    case DType::F16:
    case DType::BF16:
    case DType::Q8_0:
    case DType::Q4_0:
    case DType::Q4_1:
    case DType::Q5_0:
    case DType::Q5_1:
    case DType::Q4_K:
    case DType::Q5_K:
    case DType::Q6_K:
      return true;
    default:
      return false;
  }
}

void dequantize(DType dtype, const std::byte* source, int64_t count, float* out) {
  if (count == 0) return;
  if (count < 0 || count % dtype_info(dtype).block != 0) {
    throw Error("{} elements of {} are not whole blocks of {}", count, dtype_name(dtype),
                dtype_info(dtype).block);
  }
  switch (dtype) {
    case DType::F32:
      std::memcpy(out, source, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::F16:
      return convert_all<half_to_float>(source, count, out);
    case DType::BF16:
      return convert_all<bfloat16_to_float>(source, count, out);
    case DType::Q8_0:
      return expand_all<BlockQ8_0, 32>(source, count, out);
    case DType::Q4_0:
      return expand_all<BlockQ4_0, 32>(source, count, out);
    case DType::Q4_1:
      return expand_all<BlockQ4_1, 32>(source, count, out);
    case DType::Q5_0:
      return expand_all<BlockQ5_0, 32>(source, count, out);
    case DType::Q5_1:
      return expand_all<BlockQ5_1, 32>(source, count, out);
    case DType::Q4_K:
      return expand_all<BlockQ4_K, 256>(source, count, out);
    case DType::Q5_K:
      return expand_all<BlockQ5_K, 256>(source, count, out);
    case DType::Q6_K:
      return expand_all<BlockQ6_K, 256>(source, count, out);
    default:
      throw Error("weights of type {} are not read; {}", dtype_name(dtype), kAdvice);
  }
}

void dequantize_rows(const TensorInfo& tensor, int64_t row_begin, int64_t row_end, float* out) {
  if (row_begin < 0 || row_begin > row_end || row_end > tensor.rows()) {
    throw Error("tensor '{}' {}: rows {} to {} do not exist", printable(tensor.name),
                shape_text(tensor.shape), row_begin, row_end);
  }
  if (!can_dequantize(tensor.dtype)) {
    throw Error("tensor '{}': weights of type {} are not read; {}", printable(tensor.name),
                dtype_name(tensor.dtype), kAdvice);
  }
  dequantize(tensor.dtype, tensor.data + row_begin * tensor.row_bytes(),
             (row_end - row_begin) * tensor.row_size(), out);
}

}  // namespace heed
