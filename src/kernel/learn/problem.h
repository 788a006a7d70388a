// What every pass of the engine `learn` needs to know about a call: checked sizes, and tensors as
// pointers with strides. Internal to src/kernel/learn.
#pragma once

#include <cstdint>

#include "kernel/call/check.h"
#include "kernel/call/scratch.h"
#include "kernel/call/strided.h"
#include "kernel/learn/learn.h"

namespace heed::kernel {

struct LearnProblem {
  int64_t time = 0, heads = 0, dk = 0, dv = 0, sequences = 0, longest = 0;
  const int64_t* cu_seqlens = nullptr;
  bool norm = false, bias = false, momentum = false, open = false;
  float scale = 1;
  double eps = 1e-6;
  int64_t chunk = 1, tile = 1;  // tile: the longest piece of a chunk, at most `longest`
  LearnTensors<Strided> in, grad;

  // Where sequence n lies: row of the batch, first token, number of tokens.
  struct Span {
    int64_t b, begin, length;
  };
  Span span(int64_t n) const {
    if (cu_seqlens == nullptr) return {n, 0, time};
    return {0, cu_seqlens[n], cu_seqlens[n + 1] - cu_seqlens[n]};
  }
  int64_t rows() const { return dk + (bias ? 1 : 0); }  // of the memory, the bias among them
  int64_t position(int64_t n) const {
    return open ? static_cast<int64_t>(
                      load_element(in.initial_position.data, in.initial_position.dtype, n))
                : 0;
  }
};

heed_status check_learn(const LearnCall& call, int32_t pass, CallDtypes dtypes,
                        LearnProblem* problem, heed_message* message);

// Scratch of one worker, in floats.
int64_t learn_forward_floats(const LearnProblem& s);
int64_t learn_backward_floats(const LearnProblem& s);
int64_t learn_step_floats(const LearnProblem& s);

// The scratch of a call's workers.
struct Workers {
  Scratch scratch;
  void* workspace;

  float* of(int32_t worker) const { return scratch.of(workspace, worker); }
};

void learn_forward(const LearnProblem& s, const Workers& workers, const heed_parallel* parallel);
void learn_backward(const LearnProblem& s, const Workers& workers, const heed_parallel* parallel);
// initial_* and final_* are the same memory.
void learn_step(const LearnProblem& s, const Workers& workers, const heed_parallel* parallel);

}  // namespace heed::kernel
