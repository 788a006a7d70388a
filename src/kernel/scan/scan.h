// The engine `scan`: matrix-state recurrences, on the CPU. Per batch b and head h, with the state
// S (Dk x Dv), rows as vectors:
//
//   S_t = diag(a_t) S_{t-1} + p_t^T (r_t S_{t-1}) + k_t^T v_t          a_t = exp(log_decay)
//   read after:   out_t = scale q_t S_t
//   read before:  out_t = scale q_t (S_{t-1} + diag(u) k_t^T v_t)      (u: bonus)
//
// q, k, v, p, r, out are tokens; everything else is float32.
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

#include "kernel/call/check.h"
#include "kernel/call/fields.h"

namespace heed::kernel {

enum class Decay : int32_t {
  kNone = 0,
  kHead = 1,
  kToken = 2,
  kChannel = 3
};  // none, [H], [B,T,H], [B,T,H,Dk]
enum class Correction : int32_t { kNone = 0, kDelta = 1, kGeneral = 2 };
enum class Read : int32_t { kAfter = 0, kBefore = 1 };

// p and r make a correction general, beta makes it a delta rule; the rank of log_decay says its
// kind.
template <class X>
struct ScanTensors {
  X q, k, v, p, r, beta, log_decay, bonus, initial_state, out, final_state;
};
struct ScanOptions {
  double scale = 1;
  int64_t read_before = 0;
  int64_t chunk = 64;  // rounding only; the CPU kernels take at most 32 tokens at once
};
using ScanCall = Call<ScanTensors, ScanOptions>;

inline constexpr TensorField kScanTensors[] = {
    {"q", Role::kToken, "B,T,H,K", true, "reads the state"},
    {"k", Role::kToken, "B,T,H,K", true, "where v is written"},
    {"v", Role::kToken, "B,T,H,V", true, "values"},
    {"p", Role::kToken, "B,T,H,K", false, "general correction: with r, not with beta"},
    {"r", Role::kToken, "B,T,H,K", false, "what the correction reads, before the decay"},
    {"beta", Role::kGate, "B,T,H", false, "delta rule: beta k (v - k S) is written"},
    {"log_decay", Role::kGate, "B,T,H,K|B,T,H|H", false,
     "at most 0; -inf forgets everything before"},
    {"bonus", Role::kGate, "H,K", false, "read_before only: what a token reads of itself"},
    {"initial_state", Role::kState, "N,H,K,V", false, "zero where absent"},
    {"out", Role::kOut, "B,T,H,V", true, "scale q S"},
    {"final_state", Role::kFinal, "N,H,K,V", false, "the state after the last token"}};
inline constexpr OptionField kScanOptions[] = {
    {"scale", OptionKind::kNumber, 1, "of q"},
    {"read_before", OptionKind::kFlag, 0, "q reads the state before its own token"},
    {"chunk", OptionKind::kInteger, 64, "tokens taken at once, 1 to 1024; changes rounding only"}};

heed_status scan_rules(const void* call, int32_t pass, const CallSizes& sizes,
                       heed_message* message);

inline constexpr CallFields kScan = call_fields<ScanCall>(
    "scan",
    "S_t = diag(exp(log_decay_t)) S_{t-1} + p_t (r_t S_{t-1}) + k_t v_t, out_t = scale q_t S_t",
    kScanTensors, kScanOptions, {.rules = scan_rules});

// The CPU row. Whole sequences, their gradients, and steps with the state updated in place. T = 0
// and empty sequences leave the final state as the initial one; grad log_decay of a -inf entry is
// 0. Nothing is kept for the backward pass: the states at chunk starts are computed again.
std::span<const heed_backend> scan_backends();

// Token by token in double precision with plain loops, forward and (pass = HEED_BACKWARD) its
// adjoint: what the tests compare with. Any tensor may be float64 here.
heed_status scan_reference(const ScanCall& call, int32_t pass, heed_message* message);

}  // namespace heed::kernel
