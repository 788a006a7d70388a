// Matrix-state recurrences on tensors: the operator over kernel/scan, and its naive references.
// Rows are vectors; per sequence and head, with the state S (K x V) and a_t = exp(log_decay_t):
//
// clang-format off
//   S_t = diag(a_t) S_{t-1} + p_t^T (r_t S_{t-1}) + k_t^T v_t                  p, r given (general)
//   S'  = diag(a_t) S_{t-1},  S_t = S' + beta_t k_t^T (v_t - k_t S')             beta given (delta)
//   S_t = diag(a_t) S_{t-1} + k_t^T v_t                                                     neither
//   out_t = scale q_t S_t,  or with read_before  out_t = scale q_t (S_{t-1} + diag(bonus) k_t^T v_t)
// clang-format on
//
// GLA, arXiv 2312.06635; DeltaNet, 2406.06484; Gated DeltaNet, 2412.06464; RWKV-6, 2404.05892.
// The chunked form: spec "Shared algorithms" E1 and E2.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

#include "kernel/scan/scan.h"

namespace heed::op {

// Undefined tensors are absent. float32 all but p and r, which have q's dtype.
struct ScanInputs {
  at::Tensor p, r;           // [B,T,H,K], both or none; not with beta
  at::Tensor beta;           // [B,T,H]
  at::Tensor log_decay;      // [H], [B,T,H] or [B,T,H,K]; <= 0, -inf forgets everything before
  at::Tensor bonus;          // [H,K], read_before only
  at::Tensor initial_state;  // [B,H,K,V], in packs [N,H,K,V]; absent: zero
  at::Tensor cu_seqlens;     // int64 [N+1] on the CPU; then B = 1
};

using kernel::ScanOptions;
using ScanTensors = kernel::ScanTensors<at::Tensor>;

// q, k [B,T,H,K], v [B,T,H,V] -> out [B,T,H,V] in v's dtype, final_state float32 [B or N,H,K,V].
// Differentiable in everything but cu_seqlens (grad of a -inf decay is 0). What runs it says the
// engine's table of backends: on the CPU our kernel, on CUDA chunks with PyTorch's operators;
// float64 runs in the naive form, with one warning. Throws UsageError naming the tensor that does
// not fit.
std::tuple<at::Tensor, at::Tensor> scan(const at::Tensor& q, const at::Tensor& k,
                                        const at::Tensor& v, const ScanInputs& inputs = {},
                                        const ScanOptions& options = {});

// Token by token with ordinary tensor operations: the code to read first. float64 inputs stay
// float64, all others are computed in float32.
std::tuple<at::Tensor, at::Tensor> scan_naive(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& v, const ScanInputs& inputs = {},
                                              const ScanOptions& options = {});

// Chunks of `chunk` tokens with matrix products; per-channel decays by sub-blocks of 16.
std::tuple<at::Tensor, at::Tensor> scan_chunked_naive(const at::Tensor& q, const at::Tensor& k,
                                                      const at::Tensor& v,
                                                      const ScanInputs& inputs = {},
                                                      const ScanOptions& options = {});

// One token a sequence, T = 1: `state` float32 [B,H,K,V] contiguous is updated in place;
// inputs.initial_state and cu_seqlens are not used. Not differentiable. Returns out [B,1,H,V].
at::Tensor scan_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const ScanInputs& inputs, const ScanOptions& options, at::Tensor& state);

namespace naive {  // of one sequence each, what the engine is made of
void scan(ScanTensors& x, const ScanOptions& options);
void scan_chunked(ScanTensors& x, const ScanOptions& options);
}  // namespace naive

}  // namespace heed::op
