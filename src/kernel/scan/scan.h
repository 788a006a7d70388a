// The engine `scan`: matrix-state recurrences, on the CPU. Per batch b and head h, with the state
// S (Dk x Dv), rows as vectors:
//
//   S_t = diag(a_t) S_{t-1} + p_t^T (r_t S_{t-1}) + k_t^T v_t          a_t = exp(log_decay)
//   read after:   out_t = scale q_t S_t
//   read before:  out_t = scale q_t (S_{t-1} + diag(u) k_t^T v_t)      (u: bonus)
//
// Correction: none (p, r absent), delta (p = -beta k, r = a k, write beta k: the two delta-rule
// forms of DeltaNet and Gated DeltaNet; the correction reads the state AFTER decay), or general (p,
// r given; the correction reads the state BEFORE decay: DPLR, RWKV-7). With a correction, and for
// all gradients: chunked algorithms (GLA, arXiv 2312.06635; DeltaNet, 2406.06484; Gated DeltaNet,
// 2412.06464); without one the recurrence itself, on tiles of the state. Decays stay in log space
// and are summed in float64 or two floats; a decay of -inf is a reset, handled exactly, never by
// clamping.
#pragma once

#include <cstdint>

#include "heed/view.h"

namespace heed::kernel {

enum class Decay : int32_t {
  kNone = 0,
  kHead = 1,
  kToken = 2,
  kChannel = 3
};  // none, [H], [B,T,H], [B,T,H,Dk]
enum class Correction : int32_t { kNone = 0, kDelta = 1, kGeneral = 2 };
enum class Read : int32_t { kAfter = 0, kBefore = 1 };

// All views are [B, T, H, *] with any strides over B, T, H and contiguous last dimension.
// Token tensors q, k, v, p, r are float32, bfloat16 or float16 (all the same); everything else is
// float32. Strides of 0 (one tensor shared by several heads) are fine for inputs.
// Packs: cu_seqlens has N+1 offsets (then B = 1 and states are [N, H, Dk, Dv]).
struct ScanArgs {
  uint32_t struct_size = sizeof(ScanArgs);
  heed_view q{}, k{}, v{};    // [B,T,H,Dk], [B,T,H,Dk], [B,T,H,Dv]
  heed_view p{}, r{};         // [B,T,H,Dk], Correction::kGeneral only
  heed_view beta{};           // [B,T,H], Correction::kDelta only
  heed_view log_decay{};      // by `decay`; <= 0, -inf allowed
  heed_view bonus{};          // u [H,Dk], Read::kBefore only; may be absent
  heed_view initial_state{};  // [B or N,H,Dk,Dv] contiguous; absent: zero
  const int64_t* cu_seqlens = nullptr;
  int64_t sequences = 0;  // N
  Decay decay = Decay::kNone;
  Correction correction = Correction::kNone;
  Read read = Read::kAfter;
  float scale = 1;
  int32_t chunk = 64;       // rounding only; the CPU kernels take at most 32 tokens at once
  heed_view out{};          // [B,T,H,Dv], dtype of v
  heed_view final_state{};  // [B or N,H,Dk,Dv] contiguous; may be absent
  // Scratch memory of at least scan_workspace_bytes(); absent: forward and step allocate their own.
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

// Whole sequences. T = 0 and empty sequences leave final_state =
// initial_state.
heed_status scan_forward(const ScanArgs& args, const heed_parallel* parallel);

// One token a sequence (T = 1), state updated in place: final_state.data may equal
// initial_state.data.
heed_status scan_step(const ScanArgs& args, const heed_parallel* parallel);

// Bytes of scratch that scan_forward (or scan_step, if `step`) needs on that many threads; -1 where
// the arguments are wrong, with scan_message().
int64_t scan_workspace_bytes(const ScanArgs& args, int32_t threads, bool step);

// Gradients, all float32 and contiguous in the shape of the tensor they belong to; absent views are
// not computed. grad_log_decay of a -inf entry is 0. Kept inputs only: the states at chunk starts
// are computed again.
struct ScanGrads {
  uint32_t struct_size = sizeof(ScanGrads);
  heed_view grad_out{};          // [B,T,H,Dv], dtype of v
  heed_view grad_final_state{};  // absent: zero
  heed_view grad_q{}, grad_k{}, grad_v{}, grad_p{}, grad_r{}, grad_beta{}, grad_log_decay{},
      grad_bonus{};
  heed_view grad_initial_state{};
};
heed_status scan_backward(const ScanArgs& args, const ScanGrads& grads,
                          const heed_parallel* parallel);

// Token by token in double precision with plain loops, and its adjoint: what the tests compare
// with. Any tensor may be float64 here, results included.
heed_status scan_reference(const ScanArgs& args);
heed_status scan_backward_reference(const ScanArgs& args, const ScanGrads& grads);

// What was wrong with this thread's last call that did not return HEED_OK.
const char* scan_message();

}  // namespace heed::kernel
