// float32 to the blocks of ggml, as its quantize_row_*_ref (ggml-quants.c) does it, so that the
// bytes agree with llama.cpp's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "io/tensor_file.h"

namespace heed {

// F32, F16, BF16, Q8_0, Q4_0, Q4_1.
bool can_quantise(DType dtype);

// Writes `count` numbers (a multiple of the type's block) to `out`. Error for a type that
// can_quantise() denies.
void quantise(DType dtype, const float* values, int64_t count, std::byte* out);

// To the nearest, ties to even, as bits; NaN stays NaN.
uint16_t half_from_float(float value);
uint16_t bfloat16_from_float(float value);

}  // namespace heed
