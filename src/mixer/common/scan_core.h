// What the cores on the engine `scan` share.
#pragma once

#include "mixer/common/rows.h"
#include "mixer/registry.h"
#include "op/scan.h"

namespace heed::mixer {

// out and final_state of a recurrence in the form that was asked for: naive (token loop in tensor
// operations), chunked (the operator), recurrent (one decode step after another).
std::tuple<at::Tensor, at::Tensor> run_scan(const std::string& form, const at::Tensor& q,
                                            const at::Tensor& k, const at::Tensor& v,
                                            const op::ScanInputs& inputs,
                                            const op::ScanOptions& options);

// One decode step after another: `state` [B,H,K,V], float32 and contiguous, is updated in place.
// No packs; not differentiable.
at::Tensor scan_steps(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const op::ScanInputs& inputs, const op::ScanOptions& options,
                      at::Tensor& state);

// What a core says of its scan; what it leaves out is taken from the call.
struct ScanParts {
  at::Tensor q, k, v;           // else the tensors of these names
  op::ScanInputs in;            // else the tensors of these names, `r` only with `p`
  std::optional<double> scale;  // without the setting `scale`; else 1/sqrt(K)
  bool read_before = false;
};

// {out, final_state} of the scan whose parts are in the call by the names of ScanInputs.
NamedTensors scan_core(const CoreCall& call, ScanParts parts = {});

// scale (default 1/sqrt(K), or `fallback`) and chunk from the settings.
op::ScanOptions scan_options(const CoreCall& call, const at::Tensor& q,
                             std::optional<double> fallback = std::nullopt);

// v with a column of ones: one recurrence then carries the numerator and, in the last column, the
// divisor q_t.z_t.
at::Tensor with_ones(const at::Tensor& v);

}  // namespace heed::mixer
