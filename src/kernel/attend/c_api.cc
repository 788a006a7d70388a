// The C entry points of include/heed/attend.h: checks tensors, makes the table of jobs, calls the
// engine.
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <new>
#include <vector>

#include "heed/attend.h"
#include "kernel/attend/attend.h"

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

// Address of element [i, j, k] of a view of rank 3 or 4.
template <class Byte>
Byte* address(const heed_view& view, int64_t i, int64_t j, int64_t k) {
  const int64_t size = view.dtype == HEED_FLOAT32 ? 4 : 2;
  return static_cast<Byte*>(view.data) +
         size * (i * view.strides[0] + j * view.strides[1] + k * view.strides[2]);
}

struct Call {
  AttendTable table;
  std::vector<AttendJob> jobs;
  std::vector<Segment> segments;
  std::vector<AttendGradJob> grads;
};

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
  if (s.d < 1 || s.d > 256 || s.dv < 1 || s.dv > 256) {
    return message.fail(HEED_INVALID_ARGUMENT, "attend: D %lld and Dv %lld must be 1 to 256",
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

void make_table(const heed_attend_tensors& t, const heed_attend_options& o, const Shape& s,
                const heed_attend_gradients* g, Call& call) {
  const int64_t group = s.hq / s.hk;
  const int64_t sequences = t.cu_seqlens_q ? t.sequences : s.b;
  call.table = {};
  AttendTable& table = call.table;
  table.group = static_cast<int32_t>(group);
  table.head_dim = static_cast<int32_t>(s.d);
  table.value_dim = static_cast<int32_t>(s.dv);
  table.q_dtype = t.q.dtype;
  table.kv_dtype = t.k.dtype;
  table.weight = static_cast<Weight>(o.weight);
  table.scale = o.scale != 0 ? o.scale : 1.0f / std::sqrt(static_cast<float>(s.d));
  table.soft_cap = o.soft_cap;
  call.jobs.assign(sequences * s.hk, {});
  call.segments.assign(sequences * s.hk, {});
  call.grads.assign(g ? sequences * s.hk : 0, {});
  for (int64_t n = 0; n < sequences; ++n) {
    const bool pack = t.cu_seqlens_q != nullptr;
    const int64_t b = pack ? 0 : n;
    const int64_t q0 = pack ? t.cu_seqlens_q[n] : 0, k0 = pack ? t.cu_seqlens_k[n] : 0;
    const int64_t queries = pack ? t.cu_seqlens_q[n + 1] - q0 : s.tq;
    int64_t keys = t.kv_lengths ? t.kv_lengths[n] : s.tk;
    if (pack) keys = t.cu_seqlens_k[n + 1] - k0;
    for (int64_t h = 0; h < s.hk; ++h) {
      Segment& segment = call.segments[n * s.hk + h];
      segment.k = address<const char>(t.k, b, k0, h);
      segment.v = address<const char>(t.v, b, k0, h);
      segment.k_stride = t.k.strides[1];
      segment.v_stride = t.v.strides[1];
      segment.length = keys;
      if (t.key_bias.data) {
        segment.bias =
            reinterpret_cast<const float*>(address<const char>(t.key_bias, b, k0, h * group));
        segment.bias_stride = t.key_bias.strides[1];
        segment.bias_head_stride = t.key_bias.strides[2];
      }
      AttendJob& job = call.jobs[n * s.hk + h];
      job.q = address<const char>(t.q, b, q0, h * group);
      job.q_stride = t.q.strides[1];
      job.q_head_stride = t.q.strides[2];
      job.out = address<char>(t.out, b, q0, h * group);
      job.out_stride = t.out.strides[1];
      job.out_head_stride = t.out.strides[2];
      if (t.lse.data) {
        job.lse = reinterpret_cast<float*>(address<char>(t.lse, b, q0, h * group));
        job.lse_stride = t.lse.strides[1];
        job.lse_head_stride = t.lse.strides[2];
      }
      job.queries = queries;
      job.q_position = keys - queries;
      job.segments = &segment;
      job.segment_count = 1;
      job.causal = o.causal != 0;
      job.window = o.window;
      job.sinks = o.sinks;
      if (t.alibi_slopes.data) {
        job.slopes = static_cast<const float*>(t.alibi_slopes.data) + h * group;
      }
      job.sigmoid_bias = o.sigmoid_bias;
      if (o.default_sigmoid_bias) {
        job.sigmoid_bias = keys > 0 ? -std::log(static_cast<float>(keys)) : 0.0f;
      }
      if (!g) continue;
      AttendGradJob& grad = call.grads[n * s.hk + h];
      const auto at = [&](const heed_view& view, int64_t row, int64_t head) {
        return view.data ? reinterpret_cast<float*>(address<char>(view, b, row, head)) : nullptr;
      };
      grad.grad_out = address<const char>(g->grad_out, b, q0, h * group);
      grad.grad_q = at(g->grad_q, q0, h * group);
      grad.grad_q_stride = g->grad_q.strides[1];
      grad.grad_q_head_stride = g->grad_q.strides[2];
      grad.grad_k = at(g->grad_k, k0, h);
      grad.grad_k_stride = g->grad_k.strides[1];
      grad.grad_v = at(g->grad_v, k0, h);
      grad.grad_v_stride = g->grad_v.strides[1];
      grad.grad_bias = at(g->grad_key_bias, k0, h * group);
      grad.grad_bias_stride = g->grad_key_bias.strides[1];
      grad.grad_bias_head_stride = g->grad_key_bias.strides[2];
      if (g->grad_alibi_slopes.data) {
        grad.grad_slopes = static_cast<float*>(g->grad_alibi_slopes.data) + h * group;
      }
    }
  }
  table.jobs = call.jobs.data();
  table.job_count = static_cast<int64_t>(call.jobs.size());
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
    thread_local Call kept;  // keeps its memory from step to step
    make_table(*t, *o, shape, g, kept);
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
