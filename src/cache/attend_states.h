// One layer's causal attention for all sequences of a pack, over their caches: one kernel call with
// a job for every sequence and KV head. Dense attention, plans and stateless passes all go this
// way.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "cache/rows.h"

namespace heed {

// What becomes of a logit (op/attend.h has the formulas).
struct AttendRule {
  AttendRule(double scale) : scale(scale) {}  // NOLINT: most rules are a scale alone
  double scale;
  kernel::Weight weight = kernel::Weight::kSoftmax;
  double soft_cap = 0;      // 0: off
  double sigmoid_bias = 0;  // sigmoid only
  at::Tensor slopes;        // ALiBi: float32 [Hq] on the CPU, contiguous; undefined: none
  // Tables by distance: float32 [Hq, 2P-1], contiguous, on the device of q; relative_scale goes
  // with the weight urpe. Undefined: none. Throws UsageError where a position reaches P.
  at::Tensor relative_bias, relative_scale;
};

// q [N, Hq, D], k [N, Hk, D], v [N, Hk, Dv] (N tokens of all sequences; strided views are fine, the
// last dimension contiguous). Sequence s owns rows bounds[s] .. bounds[s+1]-1. states: one a
// sequence, all of one dtype, to which the rows are appended, or empty: then every sequence begins
// at position 0 under `programs` (one a KV head). bias: float32 [N, Hk, width], added to the logits
// of those keys, goes into the states' column "bias"; undefined: none. Returns [N, Hq, Dv] in q's
// dtype. Not differentiable.
//
// A chunk's own keys are a scratch segment beside what the cache holds, so that windows see across
// chunks exactly what one pass would; they are appended afterwards (a single token is appended
// first: its ring then holds exactly what it sees).
at::Tensor attend_states(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         std::span<const int64_t> bounds, std::span<Rows* const> states,
                         const std::vector<HeadProgram>& programs, const AttendRule& rule,
                         const at::Tensor& bias = {});

// The same with PyTorch's operators over states that group their heads, each program's heads
// together: what devices other than the CPU run (any device can).
at::Tensor attend_states_grouped(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 std::span<const int64_t> bounds, std::span<Rows* const> states,
                                 const std::vector<HeadProgram>& programs, const AttendRule& rule,
                                 const at::Tensor& bias = {});

// One token's attention q [Hq, D] over all that a grouped state holds, nothing appended, into out
// [Hq, Dv].
void attend_held(const at::Tensor& q, const Rows& state, const AttendRule& rule, at::Tensor& out);

}  // namespace heed
