// learn_step: one token of every sequence. The gradient is taken at the memory of the chunk's
// start, the running memory and the momentum are updated in place.
#include <algorithm>

#include "kernel/learn/problem.h"
#include "kernel/parallel.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/learn/step.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/learn/chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

int64_t learn_step_task(const LearnProblem& s, int64_t n, int64_t h, float* scratch) {
  Arena arena(scratch);
  LearnChunk b(s, arena);
  if (scratch == nullptr) return arena.used();
  b.use_head(h);
  b.load(n, 0, h, 1);
  const int64_t v = s.dv;
  const auto memory = [&](const Strided& x) {
    return x ? reinterpret_cast<float*>(x.row(n, h, 0)) : nullptr;
  };
  float *start = memory(s.in.initial_state), *momentum = memory(s.in.initial_momentum);
  float *start_bias = memory(s.in.initial_bias), *running = start, *running_bias = start_bias;
  if (s.open) {
    running = memory(s.in.initial_running), running_bias = memory(s.in.initial_running_bias);
  }
  const auto read = [&](const float* by, const float* m, const float* bias, float* out) {
    std::fill_n(out, b.ldv, 0.0f);
    for (int64_t i = 0; bias != nullptr && i < v; ++i) out[i] = bias[i];
    for (int64_t r = 0; r < s.dk; ++r) {
      for (int64_t i = 0; i < v; ++i) out[i] += by[r] * m[r * v + i];
    }
  };
  read(b.k, start, start_bias, b.z);
  if (s.norm) {
    b.row_gradients<NormRule>();
  } else {
    b.row_gradients<SquareRule>();
  }
  const float keep = 1 - b.alpha[0], eta = b.eta[0], theta = b.theta[0];
  const auto update = [&](float key, float* z, float* m) {
    for (int64_t i = 0; i < v; ++i) {
      float change = -theta * key * b.e[i];
      if (z != nullptr) z[i] = change += eta * z[i];
      m[i] = keep * m[i] + change;
    }
  };
  for (int64_t r = 0; r < s.dk; ++r) {
    update(b.k[r], momentum == nullptr ? nullptr : momentum + r * v, running + r * v);
  }
  if (running_bias != nullptr) update(1, nullptr, running_bias);
  const float gain = b.gain[0];
  read(b.q, running, running_bias, b.o);
  if (s.in.gain) {
    read(b.q, start, start_bias, b.z);
    for (int64_t i = 0; i < v; ++i) b.o[i] = b.z[i] + gain * (b.o[i] - b.z[i]);
  }
  if (s.in.out) store_row(b.o, v, s.in.out.row(n, 0, h), s.in.out.dtype);
  if (!s.open || s.position(n) + 1 < s.chunk) return 0;
  const auto close = [&](float* from, float* now, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (s.in.gain) now[i] = from[i] + gain * (now[i] - from[i]);
      from[i] = now[i];
    }
  };
  close(start, running, s.dk * v);
  if (running_bias != nullptr) close(start_bias, running_bias, v);
  return 0;
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(learn_step_task);

int64_t learn_step_floats(const LearnProblem& s) {
  return HWY_DYNAMIC_DISPATCH(learn_step_task)(s, 0, 0, nullptr);
}

void learn_step(const LearnProblem& s, const Workers& workers, const heed_parallel* parallel) {
  const auto task = HWY_DYNAMIC_DISPATCH(learn_step_task);
  parallel_for(parallel, s.sequences * s.heads, [&](int64_t i, int32_t worker) {
    task(s, i / s.heads, i % s.heads, workers.of(worker));
  });
  for (int64_t n = 0; s.open && n < s.sequences; ++n) {
    s.in.initial_position.scalar(n, 0, 0) = static_cast<float>((s.position(n) + 1) % s.chunk);
  }
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
