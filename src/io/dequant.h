// Stored weights as float32, exactly: the value that the format defines, in the order of operations
// of ggml's dequantize_row_* (ggml-quants.c), so that the bits agree with it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "io/tensor_file.h"

namespace heed {

// Whether dequantize() reads the type: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K,
// Q6_K.
bool can_dequantize(DType dtype);

// Writes `count` elements (a multiple of the type's block) from `source`, which need not be
// aligned, to `out`. Error for a type that can_dequantize() denies.
void dequantize(DType dtype, const std::byte* source, int64_t count, float* out);

// Rows [row_begin, row_end) of a tensor (a row is its last dimension) to `out`, row-major
// [row_end - row_begin, row_size]. Rows are independent: call it for disjoint ranges from any
// threads. Error naming the tensor for a type that is not read or a range outside the tensor.
void dequantize_rows(const TensorInfo& tensor, int64_t row_begin, int64_t row_end, float* out);

// IEEE half precision and bfloat16, as bits, to float: exact, with subnormals, infinities and NaN.
float float_from_half(uint16_t bits);
float float_from_bfloat16(uint16_t bits);

}  // namespace heed
