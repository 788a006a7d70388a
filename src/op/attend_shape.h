// A call of attend in the words of its forms, and its tensors as the engine takes them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel/attend/call.h"
#include "op/attend.h"

namespace heed::op {

using AttendTensors = kernel::AttendTensors<at::Tensor>;
using kernel::AttendSettings;

struct AttendShape {
  int64_t batch = 0, tq = 0, tk = 0;
  int64_t heads = 0, kv_heads = 0, group = 0;
  int64_t dim = 0, value_dim = 0;
  bool packed = false;
  int64_t sequences = 0;                         // batch, or the sequences of the pack
  std::vector<int64_t> q_offset, k_offset;       // packs only, [sequences+1]
  std::vector<int64_t> k_length;                 // [batch] where lengths are given
  std::vector<int64_t> head_window, head_sinks;  // [kv_heads], always filled
  std::vector<kernel::Axis> axes;
  double scale = 1;

  // Of a call that has passed the checks.
  AttendShape(const AttendTensors& x, const AttendSettings& o, const at::Tensor& cu_seqlens_q);

  bool same_window() const;  // all heads have head 0's window and sinks
  int64_t keys(int64_t sequence) const {
    if (!k_length.empty()) return k_length[sequence];
    return packed ? k_offset[sequence + 1] - k_offset[sequence] : tk;
  }
  int64_t queries(int64_t sequence) const {
    return packed ? q_offset[sequence + 1] - q_offset[sequence] : tq;
  }
  // The bias that sigmoid adds to every logit of a sequence, unless another is given.
  double sigmoid_bias(const std::optional<double>& given, int64_t sequence) const;
  double sigmoid_bias(const AttendOptions& o, int64_t sequence) const {
    return sigmoid_bias(o.bias, sequence);
  }
};

// Throws UsageError naming the tensor or option that does not fit and what was expected.
AttendShape check_attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const AttendOptions& options);

// Offsets of a pack on the CPU: int64 [N+1], from 0, never falling, ending at `end`.
std::vector<int64_t> read_offsets(const at::Tensor& cu_seqlens, int64_t end, const char* name);

namespace naive {  // what the engine is made of; takes packs whole
void attend(AttendTensors& x, const AttendSettings& o, const at::Tensor& cu_seqlens_q);
}

// Rows of the table for CUDA, over PyTorch's kernels.
struct AttendRow {
  const char* name;
  int32_t priority;
  const char* (*refuses)(const void* call, int32_t pass);
  void (*run)(AttendTensors& x, const AttendSettings& o, const at::Tensor& cu_seqlens_q);
};
extern const AttendRow kAttendFlash, kAttendEfficient;

// The gradients of q, k and v from that of lse alone, by the naive form.
std::vector<at::Tensor> attend_lse_backward(const AttendTensors& x, const AttendSettings& o,
                                            const at::Tensor& cu_seqlens_q,
                                            const at::Tensor& grad_lse);

}  // namespace heed::op
