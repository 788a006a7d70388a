// The engine `learn`: memories that are trained while they are read. Per sequence and head the
// memory is a linear map M (K x V), with a bias b (V) where one is asked for. The gradients of a
// chunk are all taken at the memory M*, b* of its start (the chunk is part of the mathematics); v_j
// is the target:
//
// clang-format off
//   z_j = k_j M* + b*
//   square:  loss |z_j - v_j|^2                dz_j = 2 (z_j - v_j)
//   norm:    loss 1/2 |w . x_j + c - v_j|^2    with x_j = (z_j - mean) / sqrt(var + eps) over V:
//            u = (w . x_j + c - v_j) . w,      dz_j = (u - mean(u) - x_j mean(u . x_j)) / sqrt(var + eps)
//   Z_i = eta_i Z_{i-1} - theta_i k_i^T dz_i   (without eta: no Z_{i-1})
//   R_i = (1 - alpha_i) R_{i-1} + Z_i          (R = M* at the start of a chunk)
//   M_i = R_i,  or with a gain  M* + gain_i (R_i - M*)
//   out_i = scale q_i M_i + b_i                (b: as M, with k = 1)
// clang-format on
//
// Titans, arXiv 2501.00663 (square, with alpha, eta, theta); TTT-linear, 2407.04620 (norm, with a
// bias and a gain). A chunk is computed in closed form by products of matrices:
// out_i = c_i q_i R_0 + f_i q_i Z_0 - sum_{j <= i} g_ij (q_i.k_j) dz_j, with c_i = prod (1 -
// alpha), P_i = prod eta, f_i = (1 - alpha_i) f_{i-1} + P_i, n_ij = eta_i n_{i-1,j}, n_jj =
// theta_j, g_ij = (1 - alpha_i) g_{i-1,j} + n_ij.
//
// A call may end inside a chunk and the next one go on there, if it is given `position`: the tokens
// of the open chunk that were seen. Then `state` is M*, `running` R. Such a state does not grow
// with the chunk, where the chunk's tokens themselves would. Without `position` the last chunk may
// be shorter, the state is M_i of the last token, and the next call begins a chunk.
#pragma once

#include "heed/backend.h"
#include "kernel/call/fields.h"

namespace heed::kernel {

template <class X>
struct LearnTensors {
  X q, k, v, alpha, eta, theta, gain, norm_weight, norm_bias;
  X initial_state, initial_momentum, initial_bias;
  X initial_running, initial_running_bias, initial_position;
  X out, final_state, final_momentum, final_bias;
  X final_running, final_running_bias, final_position;
};

struct LearnOptions {
  double scale = 1, eps = 1e-6;
  int64_t chunk = 1;
  int64_t norm = 0, bias = 0;  // flags
};

using LearnCall = Call<LearnTensors, LearnOptions>;

inline constexpr TensorField kLearnTensors[] = {
    {"q", Role::kToken, "B,T,H,K", true, "reads"},
    {"k", Role::kToken, "B,T,H,K", true, "what the memory is asked"},
    {"v", Role::kToken, "B,T,H,V", true, "what it should answer"},
    {"alpha", Role::kGate, "B,T,H", false, "forgotten share, 0 to 1; absent: 0"},
    {"eta", Role::kGate, "B,T,H", false, "momentum; absent: none"},
    {"theta", Role::kGate, "B,T,H", false, "rate; absent: 1"},
    {"gain", Role::kGate, "B,T,H", false, "factor of what a chunk learnt; not with alpha or eta"},
    {"norm_weight", Role::kGate, "H,V", false, "with norm"},
    {"norm_bias", Role::kGate, "H,V", false, "with norm"},
    {"initial_state", Role::kState, "N,H,K,V", false, "M*; absent: 0"},
    {"initial_momentum", Role::kState, "N,H,K,V", false, "Z, with eta"},
    {"initial_bias", Role::kState, "N,H,V", false, "b*, with bias"},
    {"initial_running", Role::kState, "N,H,K,V", false, "R, with position"},
    {"initial_running_bias", Role::kState, "N,H,V", false, "with position and bias"},
    {"initial_position", Role::kState, "N", false, "tokens of the open chunk"},
    {"out", Role::kOut, "B,T,H,V", true, ""},
    {"final_state", Role::kFinal, "N,H,K,V", false, ""},
    {"final_momentum", Role::kFinal, "N,H,K,V", false, "0 without eta"},
    {"final_bias", Role::kFinal, "N,H,V", false, "0 without bias"},
    {"final_running", Role::kFinal, "N,H,K,V", false, "final_state without position"},
    {"final_running_bias", Role::kFinal, "N,H,V", false, ""},
    {"final_position", Role::kFinal, "N", false, "0 without position"},
};
inline constexpr OptionField kLearnOptions[] = {
    {"scale", OptionKind::kNumber, 1, "of q"},
    {"eps", OptionKind::kNumber, 1e-6, "of the norm"},
    {"chunk", OptionKind::kInteger, 1, "tokens whose gradients are taken at one memory"},
    {"norm", OptionKind::kFlag, 0, "the loss behind a layer norm; else the square of the error"},
    {"bias", OptionKind::kFlag, 0, "the memory has a bias; not with eta"},
};
inline constexpr CallFields kLearn = call_fields<LearnCall>(
    "learn", "Z = eta Z - theta k^T dloss(k M*); M = (1 - alpha) M + Z; out = scale q M",
    kLearnTensors, kLearnOptions);

// The rows of the table of backends on the CPU: one, over all passes. Backward refuses an open
// chunk (initial_position).
extern const heed_backend kLearnBackend;

// Token by token in float64, straight from the recurrence above; any dtype, float64 among them.
heed_status learn_reference(const LearnCall& call, heed_message* message);

}  // namespace heed::kernel
