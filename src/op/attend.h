// Pairwise attention on tensors: the operator over kernel/attend, and its naive reference.
//
// clang-format off
//   x_ij = cap(scale q_i.k_j) - slope_h |p_i - j| + key_bias_jh + q_bias_ih + relative_bias[h, P-1 + j - p_i]
//                                                                          cap(x) = c tanh(x / c) if c > 0
//   softmax: out_i = sum_j exp(x_ij) v_j / sum_j exp(x_ij),   lse_i = ln sum_j exp(x_ij)
//   sigmoid: out_i = sum_j sigmoid(x_ij + bias) v_j,          lse_i = 0
//   generic: out_i = sum_j f(x_ij + bias) v_j, f softplus or relu^power (kernel/attend/generic.h), lse_i = 0
//   urpe:    out_i = sum_j relative_scale[h, P-1 + j - p_i] exp(x_ij) v_j / sum_j exp(x_ij),   lse as softmax
// clang-format on
//
// Query i stands at p_i = i + Tk - Tq (the last query at the last key). It sees key j when
// (not causal or j <= p_i) and (window == 0 or j < sinks or
// (j > p_i - window and (causal or j < p_i + window))), key_bias_jh > -inf and, where block lists
// are given, j's block is in the list of i's (with `any`: or, but never behind a causal query).
// With `axes` tokens are the cells of a grid and the rule is that of kernel::Axis on every axis. A
// query that sees no key gets out = 0, lse = -inf and no gradient. FlashAttention, arXiv
// 2205.14135; sigmoid attention, arXiv 2409.04431; neighborhood attention, arXiv 2504.16922; urpe,
// 2205.13401.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "kernel/attend/attend.h"

namespace heed::op {

struct AttendOptions {
  bool causal = false;
  std::optional<double> scale;  // default 1/sqrt(D)
  int64_t window = 0;           // 0: off
  int64_t sinks = 0;
  double soft_cap = 0;  // 0: off
  kernel::Weight weight = kernel::Weight::kSoftmax;
  std::optional<double> bias;  // sigmoid: default -ln n, n the keys of the sequence; generic: 0
  int64_t function = 0;        // of the weight generic: one of kernel::kGenericNames
  double power = 1;            // of its function relu
  at::Tensor key_bias;         // [B,Tk,Hq] float32
  at::Tensor q_bias;           // [B,Tq,Hq] float32, finite
  at::Tensor alibi_slopes;     // [Hq] float32
  // Tables by distance [Hq, 2P-1] float32; every visible pair must lie within. relative_scale is
  // the weight urpe's.
  at::Tensor relative_bias, relative_scale;
  // Packs (B = 1): int64 [N+1], from 0, never falling, to Tq and Tk. Positions, alignment, window,
  // sinks and the default bias count inside each sequence. cu_seqlens_k undefined: the same as
  // cu_seqlens_q.
  at::Tensor cu_seqlens_q, cu_seqlens_k;
  at::Tensor kv_lengths;  // int64 [B]: how many keys of each sequence count, in place of Tk
  // Window and sinks of each KV head, int64 [Hk] on the CPU, in place of the two above (0: full).
  at::Tensor head_window, head_sinks;
  // Tokens of a grid, last axis fastest: Tq = Tk = the product of the lengths; with nothing else
  // that hides by position (causal, window, lists), no packs, slopes or tables by distance.
  std::vector<kernel::Axis> axes;
  // Block-sparse lists: query block i (of q_block queries) of sequence n and head h sees the
  // blocks (of k_block keys) block_index[s[i] .. s[i+1]-1], rising, s = block_start[n,h].
  // block_start int64 [N,Hk or Hq,blocks+1], block_index int32 [M], both on the CPU.
  at::Tensor block_start, block_index;
  int64_t q_block = 0, k_block = 0;
  bool any = false;
};

// q [B,Tq,Hq,D], k [B,Tk,Hk,D], v [B,Tk,Hk,Dv]; query head h reads KV head h div (Hq/Hk). Returns
// out [B,Tq,Hq,Dv] in q's dtype and lse float32 [B,Tq,Hq], both differentiable in q, k, v and the
// float32 tensors of the options. What runs it says the engine's table of backends: on the CPU our
// kernel, on CUDA PyTorch's flash or memory-efficient kernels where they can do it; else the naive
// form, with one warning. Throws UsageError naming the tensor that does not fit.
std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v, const AttendOptions& options = {});

// The formulas with ordinary tensor operations, in float64 for float64 inputs, else in float32; any
// device; autograd is PyTorch's. Goes block by block over the queries so that one block of logits
// stays under 128 MB.
std::tuple<at::Tensor, at::Tensor> attend_naive(const at::Tensor& q, const at::Tensor& k,
                                                const at::Tensor& v,
                                                const AttendOptions& options = {});

// The keys that each query sees by rules 1 and 2 above: bool [Tq,Tk] on q's device.
at::Tensor attend_visible(int64_t tq, int64_t tk, bool causal, int64_t window, int64_t sinks,
                          const at::Device& device = at::kCPU);

// Attention over the union of the parts' keys, from the parts' results over disjoint sets of keys
// and the same queries: out = sum_p e^(lse_p - lse) out_p, lse = ln sum_p e^lse_p. outs
// [B,T,H,D] of one dtype, lses [B,T,H] float32 (float64 with float64). Differentiable in all. A
// part with lse -inf counts for nothing, whatever its out. Also torch.ops.heed.merge.
std::tuple<at::Tensor, at::Tensor> merge(const std::vector<at::Tensor>& outs,
                                         const std::vector<at::Tensor>& lses);

// For caches: runs a table of jobs that the caller built over its own memory, on PyTorch's threads.
// Throws Error if the kernel refuses it.
void attend_jobs(const kernel::AttendTable& table);

}  // namespace heed::op
