// The checked sizes of one call of scan, shared by its forms.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel/scan/scan.h"
#include "op/scan.h"

namespace heed::op {

struct ScanShape {
  int64_t batch = 0, tokens = 0, heads = 0, key_dim = 0, value_dim = 0;
  bool packed = false;
  int64_t sequences = 0;        // batch, or the sequences of the pack
  std::vector<int64_t> offset;  // packs only, [sequences+1]
  kernel::Decay decay = kernel::Decay::kNone;
  kernel::Correction correction = kernel::Correction::kNone;
};

// Throws UsageError naming the tensor or option that does not fit and what was expected.
ScanShape check_scan(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const ScanInputs& inputs, const ScanOptions& options);

}  // namespace heed::op
