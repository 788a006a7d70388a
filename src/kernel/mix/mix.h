// The engine `mix`: fixed or generated mixing of neighbouring tokens, on the CPU. Depthwise, for
// every channel c:
//
// clang-format off
//   y_t[c] = bias[c] + sum_{i<L} w[c,i] x_{t+i-(L-1)+ahead}[c]       short_conv, weight [C,L]
//   y_t[c] = bias[c] + sum_{i<L} w_t[h(c),i] x_{t+i-(L-1)+ahead}[c]  the same with a kernel a token, weight [B,T,H,L],
//                                                                    channel c of head h = c div (C / H)
//   out = y, or silu(y)
// clang-format on
//
// ahead = 0 is causal: tokens before the first are those of initial_state (the last L - 1 of what
// came before, oldest first) or zero, and final_state is the same for what comes after. ahead =
// (L-1)/2 is centred; with ahead > 0 there are no states, and tokens beyond either end are zero.
// Short convolutions of Mamba (arXiv 2312.00752) and of delta rules; dynamic convolutions,
// 1901.10430.
#pragma once

#include <cstdint>

#include "kernel/call/check.h"
#include "kernel/call/fields.h"

namespace heed::kernel {

template <class X>
struct ShortConvTensors {
  X x, weight, bias, initial_state, out, final_state;
};
struct ShortConvOptions {
  int64_t ahead = 0, silu = 0;
};
using ShortConvCall = Call<ShortConvTensors, ShortConvOptions>;

inline constexpr TensorField kShortConvTensors[] = {
    {"x", Role::kToken, "B,T,C", true, "inputs"},
    {"weight", Role::kGate, "C,L|B,T,H,L", true, "the last tap meets the current token"},
    {"bias", Role::kGate, "C", false, "added to the sum"},
    {"initial_state", Role::kState, "N,L-1,C", false, "inputs before the first, oldest first"},
    {"out", Role::kOut, "B,T,C", true, "outputs"},
    {"final_state", Role::kFinal, "N,L-1,C", false, "the last L - 1 inputs"}};
inline constexpr OptionField kShortConvOptions[] = {
    {"ahead", OptionKind::kInteger, 0, "tokens after the current one that are read"},
    {"silu", OptionKind::kFlag, 0, "the output goes through x sigmoid(x)"}};

inline constexpr CallFields kShortConv = call_fields<ShortConvCall>(
    "short_conv", "out_t = bias + sum_i w_i x_{t+i-(L-1)+ahead}, per channel", kShortConvTensors,
    kShortConvOptions);

std::span<const heed_backend> short_conv_backends();

// Plain loops in double precision, and the adjoint: what the tests compare with.
heed_status short_conv_reference(const ShortConvCall& call, int32_t pass, heed_message* message);

heed_status check_short_conv(const ShortConvCall& call, int32_t pass, CallDtypes dtypes,
                             CallSizes* sizes, heed_message* message);

}  // namespace heed::kernel
