// The C entry points of include/heed/attend.h: checks tensors, makes the table of jobs, calls the
// engine.
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <new>
#include <vector>

#include "heed/attend.h"
#include "kernel/attend/table.h"

namespace {

using namespace heed::kernel;

struct Message {
  char* text;
  size_t size;

  heed_status fail(heed_status status, const char* format, ...) const
      __attribute__((format(printf, 3, 4))) {
    if (text && size > 0) {
      va_list args;
      va_start(args, format);
      std::vsnprintf(text, size, format, args);
      va_end(args);
    }
    return status;
  }
};

bool token_dtype(int32_t dtype) {
  return dtype == HEED_FLOAT32 || dtype == HEED_BFLOAT16 || dtype == HEED_FLOAT16;
}

struct Shape {
  int64_t b, tq, tk, hq, hk, d, dv;
};

heed_status check_view(const heed_view& view, const char* name,
                       std::initializer_list<int64_t> sizes, int32_t dtype, bool contiguous,
                       const Message& message) {
  if (view.rank != static_cast<int32_t>(sizes.size())) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: %s has rank %d, expected %zu", name,
                        view.rank, sizes.size());
  }
  int64_t elements = 1;
  int i = 0;
  for (int64_t size : sizes) {
    if (view.sizes[i] != size) {
      return message.fail(HEED_INVALID_ARGUMENT,
                          "attend: %s has size %lld in dimension %d, expected %lld", name,
                          static_cast<long long>(view.sizes[i]), i, static_cast<long long>(size));
    }
    elements *= size;
    ++i;
  }
  if (view.dtype != dtype) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: %s has dtype %d, expected %d", name,
                        view.dtype, dtype);
  }
  if (view.device != HEED_CPU) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: %s is not on the CPU", name);
  }
  if (elements > 0 && !view.data) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: %s has no data", name);
  }
  const int last = view.rank - 1;
  if (contiguous && view.sizes[last] > 1 && view.strides[last] != 1) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: the last dimension of %s is not contiguous",
                        name);
  }
  return HEED_OK;
}

heed_status check(const heed_attend_tensors& t, const heed_attend_options& o, bool backward,
                  Shape& s, const Message& message) {
  if (o.version != HEED_ATTEND_VERSION) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: options of version %u, this library has %d",
                        o.version, HEED_ATTEND_VERSION);
  }
  if (t.q.rank != 4 || t.k.rank != 4 || t.v.rank != 4) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: q, k and v need rank 4, [B,T,H,D]");
  }
  s = {t.q.sizes[0], t.q.sizes[1], t.k.sizes[1], t.q.sizes[2],
       t.k.sizes[2], t.q.sizes[3], t.v.sizes[3]};
  if (!token_dtype(t.q.dtype) || !token_dtype(t.k.dtype)) {
    return message.fail(HEED_INVALID_ARGUMENT,
                        "attend: q and k must be float32, bfloat16 or float16");
  }
  if (s.b < 0 || s.tq < 0 || s.tk < 0 || s.hk < 1 || s.hq < 1 || s.hq % s.hk != 0) {
    return message.fail(HEED_INVALID_ARGUMENT,
                        "attend: %lld query heads cannot share %lld key/value heads",
                        static_cast<long long>(s.hq), static_cast<long long>(s.hk));
  }
  if (s.d < 1 || s.dv < 1) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: D %lld and Dv %lld must be at least 1",
                        static_cast<long long>(s.d), static_cast<long long>(s.dv));
  }
  const auto view = [&](const heed_view& x, const char* name, std::initializer_list<int64_t> sizes,
                        int32_t dtype, bool contiguous) {
    return check_view(x, name, sizes, dtype, contiguous, message);
  };
  heed_status status = view(t.q, "q", {s.b, s.tq, s.hq, s.d}, t.q.dtype, true);
  if (status == HEED_OK) status = view(t.k, "k", {s.b, s.tk, s.hk, s.d}, t.k.dtype, true);
  if (status == HEED_OK) status = view(t.v, "v", {s.b, s.tk, s.hk, s.dv}, t.k.dtype, true);
  if (status == HEED_OK) status = view(t.out, "out", {s.b, s.tq, s.hq, s.dv}, t.q.dtype, true);
  if (status == HEED_OK &&
      (t.lse.data || (backward && s.tq > 0 && o.weight == HEED_ATTEND_SOFTMAX))) {
    status = view(t.lse, "lse", {s.b, s.tq, s.hq}, HEED_FLOAT32, false);
  }
  if (status == HEED_OK && t.key_bias.data) {
    status = view(t.key_bias, "key_bias", {s.b, s.tk, s.hq}, HEED_FLOAT32, false);
  }
  if (status == HEED_OK && t.q_bias.data) {
    status = view(t.q_bias, "q_bias", {s.b, s.tq, s.hq}, HEED_FLOAT32, false);
  }
  if (status == HEED_OK && t.alibi_slopes.data) {
    status = view(t.alibi_slopes, "alibi_slopes", {s.hq}, HEED_FLOAT32, true);
  }
  if (status != HEED_OK) return status;
  if (o.weight != HEED_ATTEND_SOFTMAX && o.weight != HEED_ATTEND_SIGMOID) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: unknown weight %d", o.weight);
  }
  if (o.window < 0 || o.sinks < 0 || !(o.soft_cap >= 0) || !std::isfinite(o.scale)) {
    return message.fail(HEED_INVALID_ARGUMENT,
                        "attend: window, sinks and soft_cap must not be negative, scale finite");
  }
  if (!t.cu_seqlens_q != !t.cu_seqlens_k || (t.cu_seqlens_q && (t.kv_lengths || s.b != 1))) {
    return message.fail(
        HEED_INVALID_ARGUMENT,
        "attend: a pack needs cu_seqlens_q and cu_seqlens_k, B = 1 and no kv_lengths");
  }
  if (t.cu_seqlens_q) {
    const auto offsets = [&](const int64_t* x, int64_t end) {
      bool right = t.sequences >= 0 && x[0] == 0;
      for (int64_t n = 0; right && n < t.sequences; ++n) right = x[n + 1] >= x[n];
      return right && x[t.sequences] == end;
    };
    if (!offsets(t.cu_seqlens_q, s.tq) || !offsets(t.cu_seqlens_k, s.tk)) {
      return message.fail(HEED_INVALID_ARGUMENT,
                          "attend: cu_seqlens must start at 0, never fall and end at Tq and Tk");
    }
  }
  for (int64_t b = 0; t.kv_lengths && b < s.b; ++b) {
    if (t.kv_lengths[b] < 0 || t.kv_lengths[b] > s.tk) {
      return message.fail(HEED_INVALID_ARGUMENT, "attend: kv_lengths[%lld] is %lld, Tk is %lld",
                          static_cast<long long>(b), static_cast<long long>(t.kv_lengths[b]),
                          static_cast<long long>(s.tk));
    }
  }
  return HEED_OK;
}

AttendCall make_call(const heed_attend_tensors& t, const heed_attend_options& o, const Shape& s,
                     const heed_attend_gradients* g) {
  AttendCall call;
  call.q = t.q, call.k = t.k, call.v = t.v, call.out = t.out;
  call.lse = t.lse, call.key_bias = t.key_bias, call.q_bias = t.q_bias;
  call.slopes = static_cast<const float*>(t.alibi_slopes.data);
  call.q_offsets = t.cu_seqlens_q, call.k_offsets = t.cu_seqlens_k, call.sequences = t.sequences;
  call.kv_lengths = t.kv_lengths;
  call.causal = o.causal != 0;
  call.window = o.window, call.sinks = o.sinks;
  call.weight = static_cast<Weight>(o.weight);
  call.scale = o.scale != 0 ? o.scale : 1.0f / std::sqrt(static_cast<float>(s.d));
  call.soft_cap = o.soft_cap;
  call.sigmoid_bias = o.sigmoid_bias;
  call.default_sigmoid_bias = o.default_sigmoid_bias != 0;
  if (!g) return call;
  call.grad_out = g->grad_out, call.grad_lse = g->grad_lse;
  call.grad_q = g->grad_q, call.grad_k = g->grad_k, call.grad_v = g->grad_v;
  call.grad_key_bias = g->grad_key_bias, call.grad_q_bias = g->grad_q_bias;
  call.grad_slopes = static_cast<float*>(g->grad_alibi_slopes.data);
  return call;
}

heed_status check_gradients(const heed_attend_tensors& t, const heed_attend_gradients& g,
                            const Shape& s, const Message& message) {
  const auto view = [&](const heed_view& x, const char* name, std::initializer_list<int64_t> sizes,
                        bool contiguous) {
    return x.data ? check_view(x, name, sizes, HEED_FLOAT32, contiguous, message) : HEED_OK;
  };
  heed_status status =
      check_view(g.grad_out, "grad_out", {s.b, s.tq, s.hq, s.dv}, t.q.dtype, true, message);
  for (int i = 0; status == HEED_OK && i < 3; ++i) {
    if (g.grad_out.strides[i] != t.out.strides[i]) {
      status = message.fail(HEED_INVALID_ARGUMENT, "attend: grad_out has other strides than out");
    }
  }
  if (status == HEED_OK) status = view(g.grad_q, "grad_q", {s.b, s.tq, s.hq, s.d}, true);
  if (status == HEED_OK) status = view(g.grad_k, "grad_k", {s.b, s.tk, s.hk, s.d}, true);
  if (status == HEED_OK) status = view(g.grad_v, "grad_v", {s.b, s.tk, s.hk, s.dv}, true);
  if (status == HEED_OK) {
    status = view(g.grad_key_bias, "grad_key_bias", {s.b, s.tk, s.hq}, false);
  }
  if (status == HEED_OK) status = view(g.grad_q_bias, "grad_q_bias", {s.b, s.tq, s.hq}, false);
  if (status == HEED_OK) status = view(g.grad_lse, "grad_lse", {s.b, s.tq, s.hq}, false);
  for (int i = 0; status == HEED_OK && g.grad_lse.data && i < 3; ++i) {
    if (g.grad_lse.strides[i] != t.lse.strides[i]) {
      status = message.fail(HEED_INVALID_ARGUMENT, "attend: grad_lse has other strides than lse");
    }
  }
  for (int i = 0; status == HEED_OK && g.grad_q_bias.data && i < 3; ++i) {
    if (!t.q_bias.data || g.grad_q_bias.strides[i] != t.q_bias.strides[i]) {
      status = message.fail(HEED_INVALID_ARGUMENT,
                            "attend: grad_q_bias goes with q_bias and has its strides");
    }
  }
  if (status == HEED_OK) status = view(g.grad_alibi_slopes, "grad_alibi_slopes", {s.hq}, true);
  return status;
}

heed_status run(const heed_attend_tensors* t, const heed_attend_options* o,
                const heed_attend_gradients* g, bool backward, const heed_parallel* parallel,
                const Message& message) {
  if (message.text && message.size > 0) message.text[0] = 0;
  if (!t || !o || (backward && !g)) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: tensors, gradients or options are NULL");
  }
  Shape shape{};
  heed_status status = check(*t, *o, backward, shape, message);
  if (status == HEED_OK && backward) status = check_gradients(*t, *g, shape, message);
  if (status != HEED_OK) return status;
  try {
    thread_local AttendJobs kept;  // keeps its memory from step to step
    build_table(make_call(*t, *o, shape, g), kept);
    status = backward ? attend_backward(kept.table, kept.grads.data(), parallel)
                      : attend_forward(kept.table, parallel);
  } catch (const std::bad_alloc&) {
    status = HEED_OUT_OF_MEMORY;
  }
  if (status == HEED_OUT_OF_MEMORY) return message.fail(status, "attend: out of memory");
  if (status != HEED_OK) return message.fail(status, "attend: the kernel refused the call");
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
  return run(tensors, options, nullptr, false, parallel, {message, message_size});
}

heed_status heed_attend_backward(const heed_attend_tensors* tensors,
                                 const heed_attend_gradients* gradients,
                                 const heed_attend_options* options, const heed_parallel* parallel,
                                 char* message, size_t message_size) {
  return run(tensors, options, gradients, true, parallel, {message, message_size});
}

void heed_attend_release(void) { attend_release(); }

}  // extern "C"
