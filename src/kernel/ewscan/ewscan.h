// The engine `ewscan`: element-wise first-order scans, on the CPU. Three calls, each with forward,
// backward and step.
//
// clang-format off
//   ewscan          h_t = a_t . h_{t-1} + x_t                  out_t = h_t
//                   a = exp(log_decay), or with `turn` the complex numbers exp(log_decay) turn
//   selective_scan  h_t[c,k] = exp(d_t[c] A[c,k]) h_{t-1}[c,k] + d_t[c] x_t[c] B_t[k]
//                   out_t[c] = (sum_k h_t[c,k] C_t[k] + D[c] x_t[c]) silu(z_t[c])
//                   d = dt + dt_bias, then softplus where dt_softplus says so
//   lse_scan        m_t = max(m_{t-1} + l_t, s_t),  e = exp(m_{t-1} + l_t - m_t),  f = exp(s_t - m_t)
//                   u_t = e u_{t-1} + f v_t,  w_t = e w_{t-1} + f,  out_t = u_t / w_t    (l: log_decay)
// clang-format on
//
// Mamba, arXiv 2312.00752 (algorithm 2); Attention as an RNN, 2405.13956 (section 3.2). log_decay
// is at most 0; -inf forgets everything before, exactly, and takes no gradient. A decay is kept as
// a sum of two floats, for a rounded factor would drift over thousands of tokens. The states of a
// selective scan are never laid out over T: forward keeps one state in kEwscanSegment tokens for
// backward.
#pragma once

#include <cstdint>

#include "kernel/call/check.h"
#include "kernel/call/fields.h"

namespace heed::kernel {

constexpr int64_t kEwscanSegment = 32;

template <class X>
struct EwscanTensors {
  X log_decay, x, turn, initial_state, out, final_state;
};
template <class X>
struct SelectiveTensors {
  X x, dt, A, B, C, D, z, dt_bias, initial_state, out, final_state;
};
struct SelectiveOptions {
  int64_t dt_softplus = 0;
};

template <class X>
struct LseTensors {
  X score, v, log_decay, initial_m, initial_u, initial_w, out, final_m, final_u, final_w;
};

using EwscanCall = Call<EwscanTensors, NoOptions>;
using SelectiveCall = Call<SelectiveTensors, SelectiveOptions>;
using LseCall = Call<LseTensors, NoOptions>;

inline constexpr TensorField kEwscanTensors[] = {
    {"log_decay", Role::kGate, "B,T,C|C", true, "at most 0; -inf forgets everything before"},
    {"x", Role::kToken, "B,T,C|B,T,C,2", true, "what is added; pairs are complex numbers"},
    {"turn", Role::kGate, "B,T,C,2|C,2", false, "complex factor of the decay, of length 1"},
    {"initial_state", Role::kState, "N,C|N,C,2", false, "zero where absent"},
    {"out", Role::kOut, "B,T,C|B,T,C,2", true, "the state after each token"},
    {"final_state", Role::kFinal, "N,C|N,C,2", false, "the state after the last token"}};

inline constexpr TensorField kSelectiveTensors[] = {
    {"x", Role::kToken, "B,T,C", true, "inputs"},
    {"dt", Role::kGate, "B,T,C", true, "step sizes"},
    {"A", Role::kGate, "C,K", true, "negative: the rate at which a state is forgotten"},
    {"B", Role::kToken, "B,T,G,K", true, "write vectors, shared by C / G channels"},
    {"C", Role::kToken, "B,T,G,K", true, "read vectors, shared by C / G channels"},
    {"D", Role::kGate, "C", false, "skip"},
    {"z", Role::kToken, "B,T,C", false, "gate: the output times silu(z)"},
    {"dt_bias", Role::kGate, "C", false, "added to dt"},
    {"initial_state", Role::kState, "N,C,K", false, "zero where absent"},
    {"out", Role::kOut, "B,T,C", true, "outputs"},
    {"final_state", Role::kFinal, "N,C,K", false, "the state after the last token"}};
inline constexpr OptionField kSelectiveOptions[] = {
    {"dt_softplus", OptionKind::kFlag, 0, "dt + dt_bias goes through softplus"}};

inline constexpr TensorField kLseTensors[] = {
    {"score", Role::kGate, "B,T,H", true, "logits; -inf takes the token out"},
    {"v", Role::kToken, "B,T,H,V", true, "values"},
    {"log_decay", Role::kGate, "B,T,H|H", false, "at most 0: added to all earlier logits"},
    {"initial_m", Role::kState, "N,H", false, "largest logit so far; the three come together"},
    {"initial_u", Role::kState, "N,H,V", false, "sum of exp(logit - m) v"},
    {"initial_w", Role::kState, "N,H", false, "sum of exp(logit - m)"},
    {"out", Role::kOut, "B,T,H,V", true, "u / w; 0 where no token counts yet"},
    {"final_m", Role::kFinal, "N,H", false, "as initial_m, after the last token"},
    {"final_u", Role::kFinal, "N,H,V", false, "as initial_u"},
    {"final_w", Role::kFinal, "N,H", false, "as initial_w"}};

inline constexpr CallFields kEwscan =
    call_fields<EwscanCall>("ewscan", "h_t = exp(log_decay_t) h_{t-1} + x_t", kEwscanTensors);
inline constexpr CallFields kSelectiveScan = call_fields<SelectiveCall>(
    "selective_scan", "h_t = exp(d_t A) h_{t-1} + d_t x_t B_t, out_t = (h_t C_t + D x_t) silu(z_t)",
    kSelectiveTensors, kSelectiveOptions);
inline constexpr CallFields kLseScan = call_fields<LseCall>(
    "lse_scan", "out_t = sum_{j<=t} softmax(score_j + decays after j) v_j", kLseTensors);

// The tables of backends of the three; the CPU rows.
std::span<const heed_backend> ewscan_backends();
std::span<const heed_backend> selective_scan_backends();
std::span<const heed_backend> lse_scan_backends();

// Token by token in double precision with plain loops, forward and (pass = HEED_BACKWARD) its
// adjoint: what the tests compare with. Any tensor may be float64 here.
heed_status ewscan_reference(const EwscanCall& call, int32_t pass, heed_message* message);
heed_status selective_scan_reference(const SelectiveCall& call, int32_t pass,
                                     heed_message* message);
heed_status lse_scan_reference(const LseCall& call, int32_t pass, heed_message* message);

// What the shapes do not say, of each: checks for the entry points that are given a whole call.
heed_status check_ewscan(const EwscanCall& call, int32_t pass, CallDtypes dtypes, CallSizes* sizes,
                         heed_message* message);
heed_status check_selective_scan(const SelectiveCall& call, int32_t pass, CallDtypes dtypes,
                                 CallSizes* sizes, heed_message* message);
heed_status check_lse_scan(const LseCall& call, int32_t pass, CallDtypes dtypes, CallSizes* sizes,
                           heed_message* message);

}  // namespace heed::kernel
