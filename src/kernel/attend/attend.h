// The engine `attend`: pairwise attention over a ragged table of jobs, on the CPU.
//
// clang-format off
//   x_ij  = cap(scale q_i.k_j) - slope |p_i - p_j| + bias_j + q_bias_i + log_weight of j's segment
//           + relative_bias[p_j - p_i]                      cap(x) = c tanh(x / c) if c > 0
//   out_i = sum_j exp(x_ij) v_j / sum_j exp(x_ij),   lse_i = ln sum_j exp(x_ij)      (softmax)
//   out_i = sum_j sigmoid(x_ij + b) v_j                                               (sigmoid)
//   out_i = sum_j C[p_j - p_i] exp(x_ij) v_j / sum_j exp(x_ij),   lse as softmax      (urpe)
//   out_i = sum_j f(x_ij + b) v_j                              (generic: f is one of generic.h)
// clang-format on
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
#include "kernel/attend/generic.h"

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
  float log_weight = 0;  // added to every logit of the segment: its keys count e^log_weight times
  // Keys or values in few bits (kernel/quant/quant.h) in place of the table's dtype: rows of codes
  // k_stride or v_stride BYTES apart and a bfloat16 scale each. 0: as the table says. Forward
  // alone.
  uint8_t k_bits = 0, v_bits = 0;
  const uint16_t* k_scale = nullptr;  // [length]
  const uint16_t* v_scale = nullptr;
  const float* k_centre = nullptr;  // [D], added to every row; NULL: 0
  const float* v_centre = nullptr;  // [Dv]
};

// One axis of a grid of tokens, with the keys that a query at place u of it may see: [begin, end).
//   causal:  e = min((u div stride) stride + stride - 1, length - 1),
//            begin = max(e - window + 1, 0),  end = u + 1
//   else:    e = min((u div stride) stride + stride div 2, length - 1),
//            begin = min(max(e - window div 2, 0), length - window),  end = begin + window
// Neighborhood attention's exact words: shifted inward at borders, cut at the start if causal
// (arXiv 2403.04690, 2504.16922). 1 <= stride <= window <= length.
struct Axis {
  int64_t length = 0;
  int64_t window = 0;
  int64_t stride = 1;
  bool causal = false;
};
inline constexpr int32_t kMaxAxes = 3;

// One sequence and one KV head. Query n of query head g of the group lies at
// q + n q_stride + g q_head_stride and stands at position q_position + n.
// Visible: (not causal or p_j <= p_i) and
//          (window == 0 or p_j < sinks or (p_j > p_i - window and (causal or p_j < p_i + window))).
// With `axes` instead: positions count the cells of a grid, last axis fastest, and a key is visible
// where it is so on every axis; causal, window and sinks are not looked at. A query that sees no
// key gets out = 0 and lse = -inf.
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
  const Axis* axes = nullptr;  // [rank]; NULL: none
  int32_t rank = 0;
  // Added to every logit of query n and query head g: q_bias[n q_bias_stride + g
  // q_bias_head_stride], finite; NULL for none.
  const float* q_bias = nullptr;
  int64_t q_bias_stride = 0, q_bias_head_stride = 0;
  const float* slopes = nullptr;  // ALiBi slope of each of the G query heads; NULL for none
  // Tables by signed distance, [G] rows relative_stride apart: entry P - 1 + p_j - p_i, P =
  // `reach`. Every visible pair lies within. relative_bias goes with every weight, relative_scale
  // is C above (urpe alone, there needed); NULL for none.
  const float* relative_bias = nullptr;
  const float* relative_scale = nullptr;
  int64_t relative_stride = 0, reach = 0;
  float sigmoid_bias = 0;  // b above
  // Block-sparse key lists: for each block of q_block queries the blocks of k_block keys that it
  // may see, as compressed rows: blocks of query block i are block_index[block_start[i] ..
  // block_start[i+1]-1], ascending, counted from position 0. NULL block_start: all. `any` false: a
  // key must be listed and visible by the rules above; true: one of both (and not behind a causal
  // query).
  const int64_t* block_start = nullptr;
  const int32_t* block_index = nullptr;
  bool any = false;
};

// How logits become weights: one entry a line of variants.inc.
enum class Weight : int32_t {
#define HEED_ATTEND_VARIANT(Name, text, normalised) k##Name,
#include "kernel/attend/variants.inc"
#undef HEED_ATTEND_VARIANT
};
inline constexpr const char* kWeightNames[] = {
#define HEED_ATTEND_VARIANT(Name, text, normalised) text,
#include "kernel/attend/variants.inc"
#undef HEED_ATTEND_VARIANT
};
// Whether exp(x) / sum exp(x) is part of the weight: then there is an lse.
inline constexpr bool kNormalised[] = {
#define HEED_ATTEND_VARIANT(Name, text, normalised) normalised,
#include "kernel/attend/variants.inc"
#undef HEED_ATTEND_VARIANT
};
inline constexpr int32_t kWeights = static_cast<int32_t>(sizeof(kNormalised));
inline constexpr bool normalised(Weight weight) {
  return kNormalised[static_cast<int32_t>(weight)];
}

// What all jobs of one call share.
struct AttendTable {
  uint32_t struct_size = sizeof(AttendTable);
  const AttendJob* jobs = nullptr;
  int64_t job_count = 0;
  int32_t group = 1;      // G, query heads a KV head
  int32_t head_dim = 0;   // D, at least 1 (what is no multiple of a vector is padded inside)
  int32_t value_dim = 0;  // Dv, at least 1
  int32_t q_dtype = HEED_FLOAT32;   // q and out: float32, bfloat16 or float16
  int32_t kv_dtype = HEED_FLOAT32;  // k and v: float32, bfloat16 or float16
  bool packed = false;              // some segments are in few bits
  Weight weight = Weight::kSoftmax;
  float scale = 1;
  float soft_cap = 0;
  int32_t q_block = 0, k_block = 0;        // of the block-sparse lists
  const GenericWeight* generic = nullptr;  // f above; the weight generic alone, there needed
  double power = 1;                        // of f
};

// Forward for any number of queries. Few queries (decoding) split the keys of each job over all
// workers and merge; many go tile by tile. Deterministic for a given table and thread count.
// Errors: HEED_INVALID_ARGUMENT (sizes, dtypes), HEED_OUT_OF_MEMORY (scratch).
heed_status attend_forward(const AttendTable& table, const heed_parallel* parallel);

// Frees the scratch memory that attend_forward keeps for the calling thread.
void attend_release();

// Gradients of one job's tensors. `grad_*` are float32, contiguous over the last dimension, and are
// ADDED to (grad_k and grad_v of a KV head sum over its query heads); NULL ones are left out. Jobs
// may share grad_slopes and the tables by distance, nothing else: they are added to in the order of
// the jobs.
struct AttendGradJob {
  const void* grad_out = nullptr;  // dtype of q, by grad_out_stride, grad_out_head_stride
  int64_t grad_out_stride = 0, grad_out_head_stride = 0;
  const float* grad_lse = nullptr;  // NULL: zero
  int64_t grad_lse_stride = 0, grad_lse_head_stride = 0;
  float* grad_q = nullptr;  // by grad_q_stride, grad_q_head_stride
  int64_t grad_q_stride = 0, grad_q_head_stride = 0;
  float* grad_k = nullptr;  // row n of ALL segments laid one after another
  float* grad_v = nullptr;
  int64_t grad_k_stride = 0, grad_v_stride = 0;
  float* grad_bias = nullptr;  // [keys, G] by the two strides; NULL if not wanted
  int64_t grad_bias_stride = 0, grad_bias_head_stride = 0;
  float* grad_q_bias = nullptr;
  int64_t grad_q_bias_stride = 0, grad_q_bias_head_stride = 0;
  float* grad_slopes = nullptr;         // [G]
  float* grad_log_weight = nullptr;     // [segments]
  float* grad_relative_bias = nullptr;  // [G] rows relative_stride apart
  float* grad_relative_scale = nullptr;
};

// `table` as given to attend_forward with out and lse filled in by it (out and lse are needed where
// weights are normalised, else unused); grads[i] belongs to table.jobs[i].
heed_status attend_backward(const AttendTable& table, const AttendGradJob* grads,
                            const heed_parallel* parallel);

// The same results in double precision with plain loops: what the tests compare with, and the code
// to read first. Inputs and outputs have the dtypes of the table; float64 is allowed here too. The
// backward pass computes out and lse again.
heed_status attend_reference(const AttendTable& table);
heed_status attend_backward_reference(const AttendTable& table, const AttendGradJob* grads);

}  // namespace heed::kernel
