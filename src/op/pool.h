// Pooled reads on tensors: the engine `pool` (see kernel/pool/pool.h for the equations, the tensors
// and the options) and its naive form.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernel/pool/pool.h"

namespace heed::op {

using PoolTensors = kernel::PoolTensors<at::Tensor>;
using PoolOptions = kernel::PoolOptions;

// Returns x.out [B,T,H,V] in v's dtype. Differentiable in all inputs. cu_seqlens: int64 [N+1] on
// the CPU, or undefined; every query then reads the keys of its own sequence. Throws UsageError
// naming what does not fit.
at::Tensor pool(PoolTensors x, const PoolOptions& options, const at::Tensor& cu_seqlens = {});

// With a weight for every query and key; float64 inputs stay float64, all others are computed in
// float32. `causal`: query i sees the keys j <= i; then T = S.
at::Tensor pool_naive(const PoolTensors& x, const PoolOptions& options,
                      const at::Tensor& cu_seqlens = {}, bool causal = false);

// The epilogue of a read: x = q S, sum = q.z (undefined where no option needs it), mean of the
// values [.., V] (likewise) and the number of keys, a tensor that broadcasts against sum.
at::Tensor pool_epilogue(const at::Tensor& x, const at::Tensor& sum, const at::Tensor& mean,
                         const at::Tensor& count, const PoolOptions& options);

// Whether the options need q.z, and the mean value.
inline bool needs_sums(const PoolOptions& o) { return o.a1 != 0 || o.b1 != 0; }
inline bool needs_mean(const PoolOptions& o) { return o.b0 != 0 || o.b1 != 0; }

}  // namespace heed::op
