// Rows in few bits as tensors (kernel/quant/quant.h says how a row lies).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace heed {

struct QuantisedRows {
  at::Tensor codes;   // uint8 [..., row_bytes]
  at::Tensor scales;  // bfloat16 [..., 1]
};

// x [..., dim] of any floating type, on any device. On the CPU the kernels do it, elsewhere
// PyTorch's operators.
QuantisedRows encode(const at::Tensor& x, int bits);
// float32 [..., dim].
at::Tensor decode(const QuantisedRows& rows, int bits, int64_t dim);
// x [..., dim] turned in float32 (kernel/quant/quant.h); the same again turns it back.
at::Tensor rotated(const at::Tensor& x);

// The same with PyTorch's operators, on any device.
QuantisedRows encode_with_operators(const at::Tensor& x, int bits);
at::Tensor decode_with_operators(const QuantisedRows& rows, int bits, int64_t dim);

}  // namespace heed
