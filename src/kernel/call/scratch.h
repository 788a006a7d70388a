// Scratch memory of a call, as its backend asks for it: a piece for each worker, kWorkerGap apart,
// behind what all workers share.
#pragma once

#include <cstdint>

#include "kernel/parallel.h"

namespace heed::kernel {

struct Scratch {
  int64_t shared, worker;  // floats

  int64_t bytes(int32_t threads) const { return 64 + padded(shared) * 4 + threads * stride(); }
  float* all(void* workspace) const {
    const auto at = (reinterpret_cast<uintptr_t>(workspace) + 63) / 64 * 64;
    return reinterpret_cast<float*>(at);
  }
  float* of(void* workspace, int32_t w) const {
    return reinterpret_cast<float*>(reinterpret_cast<char*>(all(workspace) + padded(shared)) +
                                    w * stride());
  }

 private:
  static int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }
  int64_t stride() const { return padded(worker) * 4 + kWorkerGap; }
};

}  // namespace heed::kernel
