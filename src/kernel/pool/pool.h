// The engine `pool`: a pooled read. All keys and values of a sequence are summed once, every query
// reads the sums. Per sequence and head, with features q_i, k_j (M), values v_j (V), n keys, and
// w_j = key_weight, r_i = row_scale (1 where absent):
//
//   S = sum_j w_j k_j^T v_j,  z = sum_j w_j k_j,  mean = sum_j v_j / n
//   x_i = c q_i S,  d_i = c q_i.z               c = scale, by_count: scale / n
//   D_i = d_i + eps, or with clamp max(d_i, eps)
//   out_i = r_i ((a0 + a1 / D_i) x_i + (b0 + b1 d_i) mean)
//
// Normalised linear attention (arXiv 2006.16236) is a0 = 0, a1 = 1; InLine (2412.06590) b0 = 1,
// b1 = -1 by_count; MALA (2507.00698) a1 = 1, b1 = -1 by_count; an unnormalised read the default;
// Flowformer (2202.06258) that with key weights and row scales. Without keys out is 0. The causal
// form is the engine `scan`.
#pragma once

#include "heed/backend.h"
#include "kernel/call/fields.h"

namespace heed::kernel {

template <class X>
struct PoolTensors {
  X q, k, v, key_weight, row_scale, out;
};

struct PoolOptions {
  double scale = 1, a0 = 1, a1 = 0, b0 = 0, b1 = 0, eps = 0;
  int64_t by_count = 0, clamp = 0;  // flags
};

using PoolCall = Call<PoolTensors, PoolOptions>;

inline constexpr TensorField kPoolTensors[] = {
    {"q", Role::kToken, "B,T,H,M", true, "features of the queries"},
    {"k", Role::kToken, "B,S,J,M", true, "features of the keys; head h reads J's head h J / H"},
    {"v", Role::kToken, "B,S,J,V", true, "values"},
    {"key_weight", Role::kGate, "B,S,J", false, "factor of a key's part in S and z"},
    {"row_scale", Role::kGate, "B,T,H", false, "factor of a query's result"},
    {"out", Role::kOut, "B,T,H,V", true, ""},
};
inline constexpr OptionField kPoolOptions[] = {
    {"scale", OptionKind::kNumber, 1, "of q"},
    {"a0", OptionKind::kNumber, 1, "constant factor of the read"},
    {"a1", OptionKind::kNumber, 0, "factor of the read over its divisor"},
    {"b0", OptionKind::kNumber, 0, "constant factor of the mean value"},
    {"b1", OptionKind::kNumber, 0, "factor of the mean value times the row's sum"},
    {"eps", OptionKind::kNumber, 0, "added to the divisor, or its least value"},
    {"by_count", OptionKind::kFlag, 0, "divide by the number of keys"},
    {"clamp", OptionKind::kFlag, 0, "the divisor is at least eps"},
};
inline constexpr CallFields kPool = call_fields<PoolCall>(
    "pool", "out = r ((a0 + a1 / D) c q S + (b0 + b1 c q.z) mean(v)), S = sum w k^T v, z = sum w k",
    kPoolTensors, kPoolOptions);

// The CPU's row in the table of backends: forward and backward. A pack (cu_seqlens) needs S = T.
extern const heed_backend kPoolBackend;

// Straight from the equations in float64, as weights of every key for every query; any dtype.
heed_status pool_reference(const PoolCall& call, heed_message* message);

}  // namespace heed::kernel
