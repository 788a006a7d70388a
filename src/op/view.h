// heed_view of a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include "heed/view.h"
#include "io/error.h"

namespace heed::op {

inline heed_dtype view_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return HEED_FLOAT32;
    case at::kBFloat16:
      return HEED_BFLOAT16;
    case at::kHalf:
      return HEED_FLOAT16;
    case at::kDouble:
      return HEED_FLOAT64;
    case at::kLong:
      return HEED_INT64;
    case at::kInt:
      return HEED_INT32;
    case at::kByte:
      return HEED_UINT8;
    default:
      throw UsageError("dtype {} has no view", c10::toString(type));
  }
}

// Undefined tensors give a view without data. The view is valid as long as the tensor's storage
// lives.
inline heed_view view_of(const at::Tensor& t) {
  heed_view view = {};
  if (!t.defined()) return view;
  if (t.dim() > HEED_MAX_RANK) throw UsageError("a tensor of rank {} has no view", t.dim());
  view.data = const_cast<void*>(t.const_data_ptr());
  view.dtype = view_dtype(t.scalar_type());
  view.device = t.is_cuda() ? HEED_CUDA : HEED_CPU;
  view.rank = static_cast<int32_t>(t.dim());
  for (int64_t i = 0; i < t.dim(); ++i) {
    view.sizes[i] = t.size(i);
    view.strides[i] = t.stride(i);
  }
  return view;
}

// Contiguous over the last dimension, as the kernels want their rows.
inline at::Tensor rows(const at::Tensor& t) {
  return !t.defined() || t.dim() == 0 || t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
}

}  // namespace heed::op
