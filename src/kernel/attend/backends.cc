// The CPU row of attend in the table of backends: a call's table of jobs, run.
#include <algorithm>
#include <cstring>
#include <new>

#include "kernel/attend/table.h"
#include "kernel/parallel.h"

namespace heed::kernel {
namespace {

int64_t elements(const heed_view& view) {
  int64_t count = 1;
  for (int32_t i = 0; i < view.rank; ++i) count *= view.sizes[i];
  return count;
}

// [B,T,H,D] over `memory`.
heed_view contiguous(const heed_view& like, int64_t heads, int32_t dtype, void* memory) {
  heed_view view = like;
  view.data = memory;
  view.dtype = dtype;
  view.sizes[2] = heads;
  for (int64_t i = 3, stride = 1; i >= 0; --i) {
    view.strides[i] = stride;
    stride *= view.sizes[i];
  }
  return view;
}

// What a backward pass keeps in its workspace: gradients of k and v for each query head, zeros in
// place of a gradient that is absent.
struct Plan {
  int64_t k = 0, v = 0, out = 0;  // bytes, k and v of floats

  explicit Plan(const AttendCall& c) {
    const int64_t group = c.in.q.sizes[2] / c.in.k.sizes[2];
    if (heads_apart(c) && given(c.grad.k)) k = 4 * group * elements(c.in.k);
    if (heads_apart(c) && given(c.grad.v)) v = 4 * group * elements(c.in.v);
    if (!given(c.grad.out)) out = 4 * elements(c.in.out);
  }
  int64_t bytes() const { return k + v + out; }
};

int64_t workspace(const void* c, int32_t pass, int32_t /*threads*/) {
  return pass == HEED_BACKWARD ? Plan(*static_cast<const AttendCall*>(c)).bytes() : 0;
}

// The gradients of the heads of a group [B,T,Hq,D], added up.
void add_group(const heed_view& apart, const heed_view& to) {
  const auto* from = static_cast<const float*>(apart.data);
  auto* sum = static_cast<float*>(to.data);
  const int64_t dim = to.sizes[3], group = apart.sizes[2] / to.sizes[2];
  for (int64_t row = 0; row < elements(to) / dim; ++row, sum += dim) {
    for (int64_t g = 0; g < group; ++g, from += dim) {
      for (int64_t d = 0; d < dim; ++d) sum[d] += from[d];
    }
  }
}

// By all threads: the first to write fresh memory waits for its pages.
void zero(void* memory, int64_t bytes, const heed_parallel* parallel) {
  constexpr int64_t kLeast = 256 << 10;
  const int64_t parts = std::clamp<int64_t>(bytes / kLeast, 1, parallel_threads(parallel));
  parallel_for(parallel, parts, [&](int64_t i, int32_t /*worker*/) {
    const int64_t first = bytes * i / parts, last = bytes * (i + 1) / parts;
    if (last > first) {
      std::memset(static_cast<char*>(memory) + first, 0, static_cast<size_t>(last - first));
    }
  });
}

heed_status backward(AttendCall c, void* workspace, AttendJobs& jobs, const heed_parallel* parallel,
                     heed_message* message) {
  const bool needs = normalised(static_cast<Weight>(c.options.weight));
  if (needs && (!given(c.in.out) || !given(c.in.lse))) {
    return call_fail(kAttend, HEED_INVALID_ARGUMENT, message,
                     "the backward pass needs out and lse of the forward pass");
  }
  for (heed_view* view : {&c.grad.q, &c.grad.k, &c.grad.v, &c.grad.key_bias, &c.grad.q_bias,
                          &c.grad.alibi_slopes, &c.grad.relative_bias, &c.grad.relative_scale}) {
    if (given(*view)) zero(view->data, 4 * elements(*view), parallel);
  }
  if (elements(c.in.q) == 0 || elements(c.in.k) == 0) return HEED_OK;
  if (!needs) c.grad.lse = {};
  const Plan plan(c);
  const heed_view k = c.grad.k, v = c.grad.v;
  char* memory = static_cast<char*>(workspace);
  zero(memory, plan.bytes(), parallel);
  const int64_t heads = c.in.q.sizes[2];
  if (plan.k > 0) c.grad.k = contiguous(k, heads, HEED_FLOAT32, memory);
  if (plan.v > 0) c.grad.v = contiguous(v, heads, HEED_FLOAT32, memory + plan.k);
  if (plan.out > 0)
    c.grad.out = contiguous(c.in.out, heads, c.in.q.dtype, memory + plan.k + plan.v);
  build_table(c, true, jobs);
  const heed_status status = attend_backward(jobs.table, jobs.grads.data(), parallel);
  if (plan.k > 0) add_group(c.grad.k, k);
  if (plan.v > 0) add_group(c.grad.v, v);
  return status;
}

heed_status run(const void* call, int32_t pass, void* workspace, void* /*stream*/,
                const heed_parallel* parallel, heed_message* message) {
  thread_local AttendJobs jobs;  // keeps its memory from step to step
  heed_status status = HEED_OK;
  try {
    const auto& c = *static_cast<const AttendCall*>(call);
    if (pass == HEED_BACKWARD) {
      status = backward(c, workspace, jobs, parallel, message);
    } else if (!given(c.in.out)) {
      return call_fail(kAttend, HEED_INVALID_ARGUMENT, message, "out [B,Tq,Hq,Dv] is missing");
    } else if (elements(c.in.out) > 0) {
      build_table(c, false, jobs);
      status = attend_forward(jobs.table, parallel);
    }
  } catch (const std::bad_alloc&) {
    status = HEED_OUT_OF_MEMORY;
  }
  if (status == HEED_OUT_OF_MEMORY) return call_fail(kAttend, status, message, "out of memory");
  if (status != HEED_OK && message != nullptr && message->text[0] == 0) {
    return call_fail(kAttend, status, message, "the kernel refused the call");
  }
  return status;
}

}  // namespace

std::span<const heed_backend> attend_backends() {
  static const heed_backend rows[] = {
      {sizeof(heed_backend), "attend", "cpu", HEED_CPU, 100, nullptr, workspace, nullptr, run}};
  return rows;
}

}  // namespace heed::kernel
