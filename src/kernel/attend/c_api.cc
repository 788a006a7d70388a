// The C entry points of include/heed/attend.h over the engine's list of fields: the checks and the
// table of jobs are those of every caller. Gradients are added to what the tensors hold.
#include <cmath>
#include <cstdio>
#include <new>

#include "heed/attend.h"
#include "kernel/attend/table.h"

namespace {

using namespace heed::kernel;

heed_view offsets(const int64_t* data, int64_t count) {
  heed_view view{};
  if (data == nullptr) return view;
  view.data = const_cast<int64_t*>(data);
  view.dtype = HEED_INT64;
  view.rank = 1;
  view.sizes[0] = count;
  view.strides[0] = 1;
  return view;
}

AttendCall make_call(const heed_attend_tensors& t, const heed_attend_options& o,
                     const heed_attend_gradients* g) {
  AttendCall call;
  call.head.cu_seqlens = t.cu_seqlens_q;
  call.head.sequences = t.sequences;
  call.in.q = t.q, call.in.k = t.k, call.in.v = t.v, call.in.out = t.out, call.in.lse = t.lse;
  call.in.key_bias = t.key_bias, call.in.q_bias = t.q_bias, call.in.alibi_slopes = t.alibi_slopes;
  call.in.cu_seqlens_k = offsets(t.cu_seqlens_k, t.sequences + 1);
  call.in.kv_lengths = offsets(t.kv_lengths, t.q.sizes[0]);
  call.options.causal = o.causal != 0;
  call.options.window = o.window, call.options.sinks = o.sinks;
  call.options.weight = o.weight;
  call.options.scale = o.scale;
  if (o.scale == 0) call.options.scale = 1.0f / std::sqrt(static_cast<float>(t.q.sizes[3]));
  call.options.soft_cap = o.soft_cap;
  if (o.default_sigmoid_bias == 0) call.options.bias = o.sigmoid_bias;
  if (g == nullptr) return call;
  call.grad.out = g->grad_out, call.grad.lse = g->grad_lse;
  call.grad.q = g->grad_q, call.grad.k = g->grad_k, call.grad.v = g->grad_v;
  call.grad.key_bias = g->grad_key_bias, call.grad.q_bias = g->grad_q_bias;
  call.grad.alibi_slopes = g->grad_alibi_slopes;
  return call;
}

// What the C structs leave open that the list does not.
heed_status check(const AttendCall& call, bool backward, heed_message* message) {
  CallSizes sizes;
  const heed_status status = check_call(kAttend, &call, backward ? HEED_BACKWARD : HEED_FORWARD,
                                        CallDtypes::kKernel, &sizes, message);
  if (status != HEED_OK) return status;
  const auto fail = [&](const char* text) {
    return call_fail(kAttend, HEED_INVALID_ARGUMENT, message, "%s", text);
  };
  if (call.in.q.device != HEED_CPU) return fail("q is not on the CPU");
  const auto weight = static_cast<Weight>(call.options.weight);
  if (weight != Weight::kSoftmax && weight != Weight::kSigmoid) {
    return fail("weight is none of enum heed_attend_weight");
  }
  if (!given(call.in.out)) return fail("out [B,Tq,Hq,Dv] is missing");
  if (!backward) return HEED_OK;
  if (!given(call.grad.out)) return fail("grad_out [B,Tq,Hq,Dv] is missing");
  if (normalised(weight) && !given(call.in.lse)) return fail("lse [B,Tq,Hq] is missing");
  return HEED_OK;
}

heed_status run(const heed_attend_tensors* t, const heed_attend_options* o,
                const heed_attend_gradients* g, bool backward, const heed_parallel* parallel,
                char* text, size_t size) {
  heed_message message = {};
  const auto status = [&] {
    if (!t || !o || (backward && !g)) {
      return call_fail(kAttend, HEED_INVALID_ARGUMENT, &message,
                       "tensors, gradients or options are NULL");
    }
    if (o->version != HEED_ATTEND_VERSION) {
      return call_fail(kAttend, HEED_INVALID_ARGUMENT, &message,
                       "options of version %u, this library has %d", o->version,
                       HEED_ATTEND_VERSION);
    }
    if (!t->cu_seqlens_q != !t->cu_seqlens_k) {
      return call_fail(kAttend, HEED_INVALID_ARGUMENT, &message,
                       "a pack needs cu_seqlens_q and cu_seqlens_k");
    }
    AttendCall call = make_call(*t, *o, g);
    const heed_status checked = check(call, backward, &message);
    if (checked != HEED_OK) return checked;
    if (!normalised(static_cast<Weight>(call.options.weight))) call.grad.lse = {};
    try {
      thread_local AttendJobs kept;  // keeps its memory from step to step
      build_table(call, backward, kept);
      const heed_status ran = backward ? attend_backward(kept.table, kept.grads.data(), parallel)
                                       : attend_forward(kept.table, parallel);
      if (ran == HEED_OK || ran == HEED_OUT_OF_MEMORY) return ran;
      return call_fail(kAttend, ran, &message, "the kernel refused the call");
    } catch (const std::bad_alloc&) {
      return HEED_OUT_OF_MEMORY;
    }
  }();
  if (status == HEED_OUT_OF_MEMORY) call_fail(kAttend, status, &message, "out of memory");
  if (text && size > 0) std::snprintf(text, size, "%s", status == HEED_OK ? "" : message.text);
  return status;
}

}  // namespace

extern "C" {

void heed_attend_options_init(heed_attend_options* options) {
  *options = {HEED_ATTEND_VERSION, HEED_ATTEND_SOFTMAX, 1, 0, 0, 0.0f, 0.0f, 0.0f, 1};
}

heed_status heed_attend_forward(const heed_attend_tensors* tensors,
                                const heed_attend_options* options, const heed_parallel* parallel,
                                char* message, size_t message_size) {
  return run(tensors, options, nullptr, false, parallel, message, message_size);
}

heed_status heed_attend_backward(const heed_attend_tensors* tensors,
                                 const heed_attend_gradients* gradients,
                                 const heed_attend_options* options, const heed_parallel* parallel,
                                 char* message, size_t message_size) {
  return run(tensors, options, gradients, true, parallel, message, message_size);
}

void heed_attend_release(void) { attend_release(); }

}  // extern "C"
