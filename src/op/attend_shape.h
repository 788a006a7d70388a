// The checked sizes of one call of attend, shared by its forms.
#pragma once

#include <cstdint>
#include <vector>

#include "op/attend.h"

namespace heed::op {

struct AttendShape {
  int64_t batch = 0, tq = 0, tk = 0;
  int64_t heads = 0, kv_heads = 0, group = 0;
  int64_t dim = 0, value_dim = 0;
  bool packed = false;
  int64_t sequences = 0;                         // batch, or the sequences of the pack
  std::vector<int64_t> q_offset, k_offset;       // packs only, [sequences+1]
  std::vector<int64_t> head_window, head_sinks;  // [kv_heads], always filled
  double scale = 1;

  bool same_window() const;  // all heads have head 0's window and sinks
  int64_t keys(int64_t sequence) const {
    return packed ? k_offset[sequence + 1] - k_offset[sequence] : tk;
  }
  int64_t queries(int64_t sequence) const {
    return packed ? q_offset[sequence + 1] - q_offset[sequence] : tq;
  }
  // The bias that sigmoid adds to every logit of a sequence.
  double sigmoid_bias(const AttendOptions& options, int64_t sequence) const;
};

// Throws UsageError naming the tensor or option that does not fit and what was expected.
AttendShape check_attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const AttendOptions& options);

// Offsets of a pack on the CPU: int64 [N+1], from 0, never falling, ending at `end`.
std::vector<int64_t> read_offsets(const at::Tensor& cu_seqlens, int64_t end, const char* name);

}  // namespace heed::op
