// Element-wise scans on tensors: operators over kernel/ewscan, and their naive references. The
// equations, and what every tensor is, stand in kernel/ewscan/ewscan.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernel/ewscan/ewscan.h"
#include "op/dispatch.h"

namespace heed::op {

using EwscanTensors = TensorsOf<kernel::EwscanCall>;
using SelectiveTensors = TensorsOf<kernel::SelectiveCall>;
using LseTensors = TensorsOf<kernel::LseCall>;
using kernel::SelectiveOptions;

Engine& ewscan_engine();
Engine& selective_scan_engine();
Engine& lse_scan_engine();

// Fill the outputs of `x`. Differentiable in all inputs. float32, bfloat16 and float16 run on the
// kernel, float64 and other devices on the naive form. cu_seqlens: int64 [N+1] on the CPU, then
// B = 1. Throw UsageError naming the tensor that does not fit.
EwscanTensors ewscan(EwscanTensors x, const at::Tensor& cu_seqlens = {});
SelectiveTensors selective_scan(SelectiveTensors x, const SelectiveOptions& options = {},
                                const at::Tensor& cu_seqlens = {});
LseTensors lse_scan(LseTensors x, const at::Tensor& cu_seqlens = {});

// Token by token with ordinary tensor operations: the code to read first.
EwscanTensors ewscan_naive(EwscanTensors x, const at::Tensor& cu_seqlens = {});
SelectiveTensors selective_scan_naive(SelectiveTensors x, const SelectiveOptions& options = {},
                                      const at::Tensor& cu_seqlens = {});
LseTensors lse_scan_naive(LseTensors x, const at::Tensor& cu_seqlens = {});

// One decode step after another: what decoding computes. Not differentiable.
SelectiveTensors selective_scan_steps(SelectiveTensors x, const SelectiveOptions& options = {},
                                      const at::Tensor& cu_seqlens = {});
LseTensors lse_scan_steps(LseTensors x, const at::Tensor& cu_seqlens = {});

// One token a sequence: the states among the inputs, float32 and contiguous, are updated in place.
// Returns out. Not differentiable.
at::Tensor selective_scan_step(SelectiveTensors x, const SelectiveOptions& options = {});
at::Tensor lse_scan_step(LseTensors x);

namespace naive {  // of one sequence each, what the engines are made of
void ewscan(EwscanTensors& x, const kernel::NoOptions&);
void selective_scan(SelectiveTensors& x, const SelectiveOptions& options);
void lse_scan(LseTensors& x, const kernel::NoOptions&);
}  // namespace naive

}  // namespace heed::op
