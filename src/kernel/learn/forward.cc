// learn_forward: every (sequence, head) is one task that carries its memory over chunks. With the
// norm the columns of a memory meet in every row, so that they are not split.
#include "kernel/learn/problem.h"
#include "kernel/parallel.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/learn/forward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/learn/chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

// The memories of one sequence and head. A piece of a chunk works on `running`, whole chunks on `m`
// alone.
struct Memories {
  float *m, *running, *momentum;

  Memories(const LearnChunk& b, Arena& arena) {
    m = arena.take(b.memory);
    running = arena.take(b.s.open ? b.memory : 0);
    momentum = arena.take(b.memory);
    if (!b.s.momentum) momentum = nullptr;
  }
};

void whole_chunk(LearnChunk& b, const Memories& x) {
  b.gradients(x.m);
  b.coefficients(true);
  b.read(x.m, x.momentum);
  b.advance(x.m, x.momentum, x.m, x.momentum);
}

void open_chunk(LearnChunk& b, const Memories& x, bool begins, bool ends) {
  if (begins) std::copy_n(x.m, b.memory, x.running);
  b.gradients(x.m);
  b.coefficients(true, true);
  if (b.s.in.gain) {
    b.read(x.m, x.running);
  } else {
    b.read(x.running, x.momentum);
  }
  b.advance(x.running, x.momentum, x.running, x.momentum);
  if (ends) b.close(x.running, x.m);
}

// With scratch == nullptr only counts the floats that it needs.
int64_t learn_forward_task(const LearnProblem& s, int64_t n, int64_t h, float* scratch) {
  Arena arena(scratch);
  LearnChunk b(s, arena);
  const Memories x(b, arena);
  if (scratch == nullptr) return arena.used();
  const auto& in = s.in;
  const Strided none;
  load_memory(in.initial_state, in.initial_bias, n, h, b, x.m);
  if (s.open) load_memory(in.initial_running, in.initial_running_bias, n, h, b, x.running);
  if (s.momentum) load_memory(in.initial_momentum, none, n, h, b, x.momentum);
  b.use_head(h);
  const auto span = s.span(n);
  int64_t position = s.position(n);
  for (int64_t t = 0; t < span.length;) {
    const int64_t length = std::min(s.chunk - position, span.length - t);
    b.load(span.b, span.begin + t, h, length);
    if (!s.open || length == s.chunk) {
      whole_chunk(b, x);
    } else {
      open_chunk(b, x, position == 0, position + length == s.chunk);
    }
    if (in.out) {
      store_rows(b.o, b.ldv, b.length, b.width, in.out.row(span.b, span.begin + t, h),
                 in.out.t * dtype_size(in.out.dtype), in.out.dtype);
    }
    position = s.open ? (position + length) % s.chunk : 0;
    t += length;
  }
  store_memory(x.m, in.final_state, in.final_bias, n, h, b);
  store_memory(position > 0 ? x.running : x.m, in.final_running, in.final_running_bias, n, h, b);
  if (s.momentum) {
    store_memory(x.momentum, in.final_momentum, none, n, h, b);
  } else if (in.final_momentum) {
    std::fill_n(b.z, b.ldv, 0.0f);
    for (int64_t r = 0; r < s.dk; ++r) {
      store_row(b.z, b.width, in.final_momentum.row(n, h, r), HEED_FLOAT32);
    }
  }
  return arena.used();
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(learn_forward_task);

int64_t learn_forward_floats(const LearnProblem& s) {
  return HWY_DYNAMIC_DISPATCH(learn_forward_task)(s, 0, 0, nullptr);
}

void learn_forward(const LearnProblem& s, const Workers& workers, const heed_parallel* parallel) {
  const auto task = HWY_DYNAMIC_DISPATCH(learn_forward_task);
  parallel_for(parallel, s.sequences * s.heads, [&](int64_t i, int32_t worker) {
    task(s, i / s.heads, i % s.heads, workers.of(worker));
  });
  // Last, for it may be the memory of initial_position, which every head reads.
  for (int64_t n = 0; s.in.final_position && n < s.sequences; ++n) {
    const int64_t end = s.open ? (s.position(n) + s.span(n).length) % s.chunk : 0;
    s.in.final_position.scalar(n, 0, 0) = static_cast<float>(end);
  }
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
