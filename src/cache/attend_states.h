// One layer's causal attention for all sequences of a pack, over their caches: one kernel call with
// a job for every sequence and KV head. Dense attention, plans and stateless passes all go this
// way.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "cache/kv_state.h"

namespace heed {

// q [N, Hq, D], k and v [N, Hk, D] (N tokens of all sequences; strided views are fine, the last
// dimension contiguous). Sequence s owns rows bounds[s] .. bounds[s+1]-1. states: one a sequence,
// all of one dtype, to which the rows are appended, or empty: then every sequence begins at
// position 0 under `programs` (one a KV head). Returns [N, Hq, D] in q's dtype. Not differentiable.
//
// A chunk's own keys are a scratch segment beside what the cache holds, so that windows see across
// chunks exactly what one pass would; they are appended afterwards (a single token is appended
// first: its ring then holds exactly what it sees).
at::Tensor attend_states(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         std::span<const int64_t> bounds, std::span<KvState* const> states,
                         const std::vector<HeadProgram>& programs, double scale);

// The same with PyTorch's operators over states that group their heads, each program's heads
// together: what devices other than the CPU run (any device can).
at::Tensor attend_states_grouped(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 std::span<const int64_t> bounds, std::span<KvState* const> states,
                                 const std::vector<HeadProgram>& programs, double scale);

// One token's attention q [Hq, D] over all that a grouped state holds, nothing appended, into out
// [Hq, D].
void attend_held(const at::Tensor& q, const KvState& state, double scale, at::Tensor& out);

}  // namespace heed
