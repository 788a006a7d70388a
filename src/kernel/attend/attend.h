// The engine `attend`: softmax (or sigmoid) attention over a ragged table of jobs, on the CPU.
//
//   x_ij  = cap(scale q_i.k_j) - slope |p_i - p_j| + bias_j         cap(x) = c tanh(x / c) if c > 0
//   out_i = sum_j exp(x_ij) v_j / sum_j exp(x_ij),   lse_i = ln sum_j exp(x_ij)      (softmax)
//   out_i = sum_j sigmoid(x_ij + b) v_j                                               (sigmoid)
//
// over the keys j that query i may see. A job is one sequence and one KV head: its queries (G query
// heads share the KV head) and the list of key segments that it reads. Dense attention is one
// segment a job; a pack is one job a sequence and head; a cache gives its sinks, the two runs of
// its ring and its pages; partial results merge by the rule (m, l, o) of merge.h. There is no
// second path.
//
// Online softmax: Milakov & Gimelshein, arXiv 1805.02867; tiling: FlashAttention, arXiv 2205.14135;
// split-KV decoding: Flash-Decoding, and Lean Attention, arXiv 2405.10480.
#pragma once

#include <cstdint>

#include "heed/view.h"

namespace heed::kernel {

// A run of keys at consecutive positions: rows k + n k_stride of D numbers, v + n v_stride of Dv.
struct Segment {
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t k_stride = 0;  // elements between rows
  int64_t v_stride = 0;
  int64_t length = 0;    // keys; 0 is allowed
  int64_t position = 0;  // of the first key
  // Added to every logit of query head g: bias[n bias_stride + g bias_head_stride]; NULL for none.
  // -inf hides the key.
  const float* bias = nullptr;
  int64_t bias_stride = 0;
  int64_t bias_head_stride = 0;
};

// One sequence and one KV head. Query n of query head g of the group lies at
// q + n q_stride + g q_head_stride and stands at position q_position + n.
// Visible: (not causal or p_j <= p_i) and
//          (window == 0 or p_j < sinks or (p_j > p_i - window and (causal or p_j < p_i + window))).
// A query that sees no key gets out = 0 and lse = -inf.
struct AttendJob {
  const void* q = nullptr;
  void* out = nullptr;   // [queries, G, Dv] by out_stride, out_head_stride
  float* lse = nullptr;  // may be NULL; by lse_stride, lse_head_stride
  int64_t q_stride = 0, q_head_stride = 0;
  int64_t out_stride = 0, out_head_stride = 0;
  int64_t lse_stride = 0, lse_head_stride = 0;
  int64_t queries = 0;
  int64_t q_position = 0;  // may be negative (more queries than keys)
  const Segment* segments = nullptr;
  int32_t segment_count = 0;
  bool causal = true;
  int64_t window = 0;  // 0: off
  int64_t sinks = 0;
  const float* slopes = nullptr;  // ALiBi slope of each of the G query heads; NULL for none
  float sigmoid_bias = 0;         // b above
  // Block-sparse key lists: for each block of q_block queries the blocks of k_block keys that it
  // may see, as compressed rows: blocks of query block i are block_index[block_start[i] ..
  // block_start[i+1]-1], ascending, counted from position 0. NULL block_start: all. Combines with
  // the rules above.
  const int64_t* block_start = nullptr;
  const int32_t* block_index = nullptr;
};

enum class Weight : int32_t { kSoftmax = 0, kSigmoid = 1 };

// What all jobs of one call share.
struct AttendTable {
  uint32_t struct_size = sizeof(AttendTable);
  const AttendJob* jobs = nullptr;
  int64_t job_count = 0;
  int32_t group = 1;      // G, query heads a KV head
  int32_t head_dim = 0;   // D, 1 .. 256 (sizes that are no multiple of a vector are padded inside)
  int32_t value_dim = 0;  // Dv, 1 .. 256
  int32_t q_dtype = HEED_FLOAT32;   // q and out: float32, bfloat16 or float16
  int32_t kv_dtype = HEED_FLOAT32;  // k and v: float32, bfloat16 or float16
  Weight weight = Weight::kSoftmax;
  float scale = 1;
  float soft_cap = 0;
  int32_t q_block = 0, k_block = 0;  // of the block-sparse lists
};

// Forward for any number of queries. Few queries (decoding) split the keys of each job over all
// workers and merge; many go tile by tile. Deterministic for a given table and thread count.
// Errors: HEED_INVALID_ARGUMENT (sizes, dtypes), HEED_OUT_OF_MEMORY (scratch).
heed_status attend_forward(const AttendTable& table, const heed_parallel* parallel);

// Frees the scratch memory that attend_forward keeps for the calling thread.
void attend_release();

// Gradients of one job's tensors. `grad_*` are float32, contiguous over the last dimension, and are
// ADDED to (grad_k and grad_v of a KV head sum over its query heads); NULL ones are left out. Jobs
// may share grad_slopes, nothing else: it is added to in the order of the jobs.
struct AttendGradJob {
  const void* grad_out = nullptr;  // dtype of q, same strides as out
  float* grad_q = nullptr;         // by grad_q_stride, grad_q_head_stride
  int64_t grad_q_stride = 0, grad_q_head_stride = 0;
  float* grad_k = nullptr;  // row n of ALL segments laid one after another
  float* grad_v = nullptr;
  int64_t grad_k_stride = 0, grad_v_stride = 0;
  float* grad_bias = nullptr;  // [keys, G] by the two strides; NULL if not wanted
  int64_t grad_bias_stride = 0, grad_bias_head_stride = 0;
  float* grad_slopes = nullptr;  // [G], added to; NULL if not wanted
};

// `table` as given to attend_forward with out and lse filled in by it (out and lse are needed for
// softmax, unused for sigmoid); grads[i] belongs to table.jobs[i].
heed_status attend_backward(const AttendTable& table, const AttendGradJob* grads,
                            const heed_parallel* parallel);

// The same results in double precision with plain loops: what the tests compare with, and the code
// to read first. Inputs and outputs have the dtypes of the table; float64 is allowed here too. The
// backward pass computes out and lse again.
heed_status attend_reference(const AttendTable& table);
heed_status attend_backward_reference(const AttendTable& table, const AttendGradJob* grads);

}  // namespace heed::kernel
