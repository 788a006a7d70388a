// The job table of one call on tensors: what the C library and the operator both build. Tensors are
// views; nothing is checked or allocated here but the table itself.
#pragma once

#include <cstdint>
#include <vector>

#include "heed/view.h"
#include "kernel/attend/attend.h"

namespace heed::kernel {

// Sizes are those of the views. A view without data is an input that is missing or a gradient that
// is not wanted.
struct AttendCall {
  heed_view q{}, k{}, v{}, out{};         // [B,T,H,D], rows contiguous
  heed_view lse{}, key_bias{}, q_bias{};  // [B,T,Hq] float32
  const float* slopes = nullptr;          // [Hq]
  const float* relative_bias = nullptr;   // [Hq, 2 reach - 1]
  const float* relative_scale = nullptr;
  int64_t reach = 0;
  // A pack of `sequences` (B = 1) where offsets are given; else kv_lengths [B] may say how many
  // keys count.
  const int64_t* q_offsets = nullptr;
  const int64_t* k_offsets = nullptr;
  int64_t sequences = 0;
  const int64_t* kv_lengths = nullptr;
  bool causal = false;
  int64_t window = 0, sinks = 0;
  const int64_t* head_window = nullptr;  // [Hk], in place of the two
  const int64_t* head_sinks = nullptr;
  const Axis* axes = nullptr;
  int32_t rank = 0;
  Weight weight = Weight::kSoftmax;
  float scale = 1, soft_cap = 0, sigmoid_bias = 0;
  bool default_sigmoid_bias = false;  // -ln of the sequence's keys
  // Lists [sequences, block_heads, blocks + 1], block_heads Hk or Hq. With Hq every query head is
  // a job of its own, and the gradients of k and v have Hq heads too.
  const int64_t* block_start = nullptr;
  const int32_t* block_index = nullptr;
  int64_t block_heads = 0, blocks = 0;
  int32_t q_block = 0, k_block = 0;
  bool any = false;

  heed_view grad_out{};  // as out
  heed_view grad_lse{};  // as lse
  heed_view grad_q{}, grad_k{}, grad_v{}, grad_key_bias{}, grad_q_bias{};
  float* grad_slopes = nullptr;  // a row of Hq a sequence, grad_slopes_stride apart (may be 0)
  int64_t grad_slopes_stride = 0;
  float* grad_relative_bias = nullptr;
  float* grad_relative_scale = nullptr;
};

// Keeps its memory from call to call.
struct AttendJobs {
  std::vector<Segment> segments;
  std::vector<AttendJob> jobs;
  std::vector<AttendGradJob> grads;  // empty without grad_out
  AttendTable table;
};

// `jobs` points into itself and into the tensors of `call`.
void build_table(const AttendCall& call, AttendJobs& jobs);

}  // namespace heed::kernel
