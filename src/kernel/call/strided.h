// Tensors of a call as pointers with strides, for the passes of an engine.
#pragma once

#include <cstdint>

#include "heed/view.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel {

// [B, T, H, *], a state [N, H, K, V] (then t is the stride of the head and h that of the row),
// [H, *] or [N]; data == nullptr: absent, or without elements. Strides in elements.
struct Strided {
  char* data = nullptr;
  int32_t dtype = HEED_FLOAT32;
  int64_t b = 0, t = 0, h = 0;

  Strided() = default;
  explicit Strided(const heed_view& view) {
    int64_t count = 1;
    for (int32_t i = 0; i < view.rank; ++i) count *= view.sizes[i];
    if (count == 0) return;
    data = static_cast<char*>(view.data);
    dtype = view.dtype;
    if (view.rank == 1) b = view.strides[0];
    if (view.rank == 2) h = view.strides[0];
    if (view.rank >= 3) b = view.strides[0], t = view.strides[1], h = view.strides[2];
  }
  explicit operator bool() const { return data != nullptr; }

  char* row(int64_t at_b, int64_t at_t, int64_t at_h) const {
    return data + (at_b * b + at_t * t + at_h * h) * dtype_size(dtype);
  }
  float& scalar(int64_t at_b, int64_t at_t, int64_t at_h) const {
    return *reinterpret_cast<float*>(row(at_b, at_t, at_h));
  }
};

}  // namespace heed::kernel
