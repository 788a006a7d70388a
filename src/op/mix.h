// Mixing of neighbouring tokens on tensors: the operator over kernel/mix, its naive reference, and
// long kernels by FFT. What every tensor is stands in kernel/mix/mix.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernel/mix/mix.h"
#include "op/dispatch.h"

namespace heed::op {

using ShortConvTensors = TensorsOf<kernel::ShortConvCall>;
using kernel::ShortConvOptions;

Engine& short_conv_engine();

// Fills out and, for ahead = 0, final_state. Differentiable in all inputs. Throws UsageError naming
// the tensor or option that does not fit.
ShortConvTensors short_conv(ShortConvTensors x, const ShortConvOptions& options = {},
                            const at::Tensor& cu_seqlens = {});
ShortConvTensors short_conv_naive(ShortConvTensors x, const ShortConvOptions& options = {},
                                  const at::Tensor& cu_seqlens = {});
// One token a sequence: x.initial_state [N,L-1,C], float32 and contiguous, is updated in place.
at::Tensor short_conv_step(ShortConvTensors x, const ShortConvOptions& options = {});

namespace naive {
void short_conv(ShortConvTensors& x, const ShortConvOptions& options);
}

}  // namespace heed::op
