// Memories that are trained while they are read, on tensors: the engine `learn` (see
// kernel/learn/learn.h for the equations, the tensors and the options) and its naive form.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernel/learn/learn.h"

namespace heed::op {

using LearnTensors = kernel::LearnTensors<at::Tensor>;
using LearnOptions = kernel::LearnOptions;

// Reads the inputs among x (absent ones undefined) and fills its outputs: out in v's dtype, states
// in float32. Differentiable in all float inputs; from inside a chunk (initial_position) by the
// naive form. cu_seqlens: int64 [N+1] on the CPU, or undefined. Throws UsageError naming what does
// not fit.
void learn(LearnTensors& x, const LearnOptions& options, const at::Tensor& cu_seqlens = {});

// Token by token from the recurrence; float64 inputs stay float64, all others are computed in
// float32.
void learn_naive(LearnTensors& x, const LearnOptions& options, const at::Tensor& cu_seqlens = {});

// The same for sequences of one length, without packs: what the table of backends falls back to.
void learn_recurrence(LearnTensors& x, const LearnOptions& options);

// One token a sequence, T = 1: the states initial_* are updated in place. Chunks of more than one
// token, and a gain, need initial_running and initial_position. Not differentiable.
void learn_step(LearnTensors& x, const LearnOptions& options);

}  // namespace heed::op
