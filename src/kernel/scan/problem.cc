// Checks of the engine's arguments, with a message for each thing that can be wrong.
#include "kernel/scan/problem.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernel/parallel.h"

namespace heed::kernel {
namespace {

thread_local char message[256] = "";

bool dtype_ok(int32_t dtype, bool token, ScanDtypes dtypes) {
  if (dtype == HEED_FLOAT32) return true;
  if (dtypes == ScanDtypes::kReference && dtype == HEED_FLOAT64) return true;
  return token && (dtype == HEED_BFLOAT16 || dtype == HEED_FLOAT16);
}

struct Shape {
  int32_t rank;
  int64_t sizes[4];
};

// Checks shape, dtype and layout of one view; `last` is whether its last dimension must be
// contiguous.
heed_status check_view(const char* name, const heed_view& view, const Shape& shape, bool token,
                       bool last, ScanDtypes dtypes) {
  if (view.device != HEED_CPU) {
    return scan_fail(HEED_UNSUPPORTED, "scan: %s is not in the memory of the CPU", name);
  }
  if (!dtype_ok(view.dtype, token, dtypes)) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: %s has dtype %d, which it does not take", name,
                     view.dtype);
  }
  if (view.rank != shape.rank) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: %s has rank %d, expected %d", name, view.rank,
                     shape.rank);
  }
  for (int32_t i = 0; i < shape.rank; ++i) {
    if (view.sizes[i] != shape.sizes[i]) {
      return scan_fail(
          HEED_INVALID_ARGUMENT, "scan: %s has size %lld in dimension %d, expected %lld", name,
          static_cast<long long>(view.sizes[i]), i, static_cast<long long>(shape.sizes[i]));
    }
  }
  const int32_t end = shape.rank - 1;
  if (last && shape.sizes[end] > 1 && view.strides[end] != 1) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: the last dimension of %s is not contiguous",
                     name);
  }
  return HEED_OK;
}

// [B, T, H, D] or [B, T, H].
ScanTensor tokens(const heed_view& view) {
  return {static_cast<char*>(view.data), view.dtype, view.strides[0], view.strides[1],
          view.strides[2]};
}

}  // namespace

heed_status scan_fail(heed_status status, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(message, sizeof(message), format, args);
  va_end(args);
  return status;
}

const char* scan_message() { return message; }

heed_status check_scan(const ScanArgs& args, ScanDtypes dtypes, bool need_out,
                       ScanProblem* problem) {
  message[0] = 0;
  if (args.struct_size != sizeof(ScanArgs)) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: ScanArgs of another version (%u bytes, not %zu)",
                     args.struct_size, sizeof(ScanArgs));
  }
  ScanProblem p;
  if (args.q.data == nullptr && args.q.rank != 4) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: q is missing");
  }
  if (args.q.rank != 4 || args.v.rank != 4) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: q and v must have rank 4, [B, T, H, D]");
  }
  p.batch = args.q.sizes[0];
  p.time = args.q.sizes[1];
  p.heads = args.q.sizes[2];
  p.dk = args.q.sizes[3];
  p.dv = args.v.sizes[3];
  p.decay = args.decay;
  p.correction = args.correction;
  p.read = args.read;
  p.scale = args.scale;
  p.chunk = args.chunk;
  if (p.batch < 0 || p.time < 0 || p.heads < 1 || p.dk < 1 || p.dv < 1) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: H, Dk and Dv must be at least 1");
  }
  if (p.chunk < 1) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: chunk is %lld, it must be at least 1",
                     static_cast<long long>(p.chunk));
  }
  p.sequences = p.batch;
  if (args.cu_seqlens != nullptr) {
    const int64_t n = args.sequences;
    if (p.batch != 1 || n < 0) {
      return scan_fail(HEED_INVALID_ARGUMENT, "scan: a pack (cu_seqlens) has B = 1, not %lld",
                       static_cast<long long>(p.batch));
    }
    if (args.cu_seqlens[0] != 0 || args.cu_seqlens[n] != p.time) {
      return scan_fail(HEED_INVALID_ARGUMENT,
                       "scan: cu_seqlens must start at 0 and end at T = %lld",
                       static_cast<long long>(p.time));
    }
    for (int64_t i = 0; i < n; ++i) {
      if (args.cu_seqlens[i + 1] < args.cu_seqlens[i]) {
        return scan_fail(HEED_INVALID_ARGUMENT, "scan: cu_seqlens decreases at entry %lld",
                         static_cast<long long>(i) + 1);
      }
    }
    p.sequences = n;
    p.cu_seqlens = args.cu_seqlens;
  }
  const Shape keys{4, {p.batch, p.time, p.heads, p.dk}};
  const Shape values{4, {p.batch, p.time, p.heads, p.dv}};
  const Shape scalars{3, {p.batch, p.time, p.heads}};
  const Shape states{4, {p.sequences, p.heads, p.dk, p.dv}};

  // A tensor of no tokens may have a null pointer.
  const bool empty = p.batch == 0 || p.time == 0;
  auto take = [&](const char* name, const heed_view& view, const Shape& shape, bool token,
                  bool required, ScanTensor* out) -> heed_status {
    if (view.data == nullptr && (!required || empty)) return HEED_OK;
    if (view.data == nullptr) return scan_fail(HEED_INVALID_ARGUMENT, "scan: %s is missing", name);
    const heed_status status = check_view(name, view, shape, token, shape.rank == 4, dtypes);
    if (status == HEED_OK) *out = tokens(view);
    return status;
  };
#define HEED_SCAN_TAKE(...)                       \
  do {                                            \
    const heed_status status = take(__VA_ARGS__); \
    if (status != HEED_OK) return status;         \
  } while (0)
  HEED_SCAN_TAKE("q", args.q, keys, true, true, &p.q);
  HEED_SCAN_TAKE("k", args.k, keys, true, true, &p.k);
  HEED_SCAN_TAKE("v", args.v, values, true, true, &p.v);
  if (p.correction == Correction::kGeneral) {
    HEED_SCAN_TAKE("p", args.p, keys, true, true, &p.p);
    HEED_SCAN_TAKE("r", args.r, keys, true, true, &p.r);
  } else if (p.correction == Correction::kDelta) {
    HEED_SCAN_TAKE("beta", args.beta, scalars, false, true, &p.beta);
  } else if (p.correction != Correction::kNone) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: unknown correction %d",
                     static_cast<int>(p.correction));
  }
  if (p.decay == Decay::kToken) {
    HEED_SCAN_TAKE("log_decay", args.log_decay, scalars, false, true, &p.log_decay);
  } else if (p.decay == Decay::kChannel) {
    HEED_SCAN_TAKE("log_decay", args.log_decay, keys, false, true, &p.log_decay);
  } else if (p.decay == Decay::kHead) {
    if (args.log_decay.data == nullptr) {
      return scan_fail(HEED_INVALID_ARGUMENT, "scan: log_decay is missing");
    }
    const heed_status status =
        check_view("log_decay", args.log_decay, {1, {p.heads}}, false, false, dtypes);
    if (status != HEED_OK) return status;
    p.log_decay = {static_cast<char*>(args.log_decay.data), args.log_decay.dtype, 0, 0,
                   args.log_decay.strides[0]};
  } else if (p.decay != Decay::kNone) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: unknown decay %d", static_cast<int>(p.decay));
  }
  if (p.read != Read::kAfter && p.read != Read::kBefore) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: unknown read %d", static_cast<int>(p.read));
  }
  if (args.bonus.data != nullptr) {
    if (p.read != Read::kBefore) {
      return scan_fail(HEED_INVALID_ARGUMENT, "scan: bonus needs read = before");
    }
    const heed_status status =
        check_view("bonus", args.bonus, {2, {p.heads, p.dk}}, false, true, dtypes);
    if (status != HEED_OK) return status;
    p.bonus = {static_cast<char*>(args.bonus.data), args.bonus.dtype, 0, 0, args.bonus.strides[0]};
  }
  HEED_SCAN_TAKE("initial_state", args.initial_state, states, false, false, &p.initial_state);
  if (need_out) {
    HEED_SCAN_TAKE("out", args.out, values, true, true, &p.out);
    HEED_SCAN_TAKE("final_state", args.final_state, states, false, false, &p.final_state);
  }
  if (dtypes == ScanDtypes::kKernel && !empty) {
    for (const ScanTensor* t : {&p.k, &p.v, &p.p, &p.r, &p.out}) {
      if (*t && t->dtype != p.q.dtype) {
        return scan_fail(HEED_INVALID_ARGUMENT, "scan: q, k, v, p, r and out differ in dtype");
      }
    }
  }
  *problem = p;
  return HEED_OK;
}

ScanScratch::~ScanScratch() { std::free(own_); }

namespace {

constexpr int64_t kAlignment = 64;

// A worker's piece: a line that says whether it was cleared, the floats, and the gap to the next.
int64_t bytes_a_worker(int64_t floats) {
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
  return kAlignment + (bytes + kAlignment - 1) / kAlignment * kAlignment + kWorkerGap;
}

}  // namespace

int64_t ScanScratch::bytes(int64_t floats, int32_t threads) {
  return kAlignment + threads * bytes_a_worker(floats) - kWorkerGap;
}

heed_status ScanScratch::take(const ScanArgs& args, int64_t floats, int32_t threads) {
  const int64_t needed = bytes(floats, threads);
  void* memory = args.workspace;
  if (memory == nullptr) {
    memory = own_ = std::malloc(static_cast<size_t>(needed));
    if (memory == nullptr) {
      return scan_fail(HEED_OUT_OF_MEMORY, "scan: no memory for %lld bytes of scratch",
                       static_cast<long long>(needed));
    }
  } else if (args.workspace_bytes < needed) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: the workspace has %lld bytes, %lld are needed",
                     static_cast<long long>(args.workspace_bytes), static_cast<long long>(needed));
  }
  const uintptr_t at = reinterpret_cast<uintptr_t>(memory) + kAlignment - 1;
  at_ = reinterpret_cast<char*>(at / kAlignment * kAlignment);
  floats_ = floats;
  for (int32_t worker = 0; worker < threads; ++worker) at_[worker * bytes_a_worker(floats)] = 0;
  return HEED_OK;
}

float* ScanScratch::of(int32_t worker) const {
  char* cleared = at_ + worker * bytes_a_worker(floats_);
  float* floats = reinterpret_cast<float*>(cleared + kAlignment);
  if (*cleared == 0) {
    std::memset(floats, 0, static_cast<size_t>(floats_) * sizeof(float));
    *cleared = 1;
  }
  return floats;
}

heed_status check_scan_grads(const ScanGrads& grads, ScanDtypes dtypes, const ScanProblem& p,
                             ScanGradProblem* out) {
  if (grads.struct_size != sizeof(ScanGrads)) {
    return scan_fail(HEED_INVALID_ARGUMENT,
                     "scan: ScanGrads of another version (%u bytes, not %zu)", grads.struct_size,
                     sizeof(ScanGrads));
  }
  const Shape keys{4, {p.batch, p.time, p.heads, p.dk}};
  const Shape values{4, {p.batch, p.time, p.heads, p.dv}};
  const Shape scalars{3, {p.batch, p.time, p.heads}};
  const Shape states{4, {p.sequences, p.heads, p.dk, p.dv}};
  const bool empty = p.batch == 0 || p.time == 0;
  ScanGradProblem g;
  auto take = [&](const char* name, const heed_view& view, const Shape& shape, bool token,
                  ScanTensor* tensor) -> heed_status {
    if (view.data == nullptr) return HEED_OK;
    const heed_status status = check_view(name, view, shape, token, shape.rank == 4, dtypes);
    if (status == HEED_OK) *tensor = tokens(view);
    return status;
  };
  HEED_SCAN_TAKE("grad_out", grads.grad_out, values, true, &g.grad_out);
  if (!g.grad_out && !empty) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: grad_out is missing");
  }
  if (dtypes == ScanDtypes::kKernel && !empty && g.grad_out.dtype != p.v.dtype) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: grad_out and v differ in dtype");
  }
  HEED_SCAN_TAKE("grad_final_state", grads.grad_final_state, states, false, &g.grad_final_state);
  HEED_SCAN_TAKE("grad_initial_state", grads.grad_initial_state, states, false, &g.initial_state);
  HEED_SCAN_TAKE("grad_q", grads.grad_q, keys, false, &g.q);
  HEED_SCAN_TAKE("grad_k", grads.grad_k, keys, false, &g.k);
  HEED_SCAN_TAKE("grad_v", grads.grad_v, values, false, &g.v);
  if (p.correction == Correction::kGeneral) {
    HEED_SCAN_TAKE("grad_p", grads.grad_p, keys, false, &g.p);
    HEED_SCAN_TAKE("grad_r", grads.grad_r, keys, false, &g.r);
  } else if (p.correction == Correction::kDelta) {
    HEED_SCAN_TAKE("grad_beta", grads.grad_beta, scalars, false, &g.beta);
  }
  if (p.decay == Decay::kToken) {
    HEED_SCAN_TAKE("grad_log_decay", grads.grad_log_decay, scalars, false, &g.log_decay);
  } else if (p.decay == Decay::kChannel) {
    HEED_SCAN_TAKE("grad_log_decay", grads.grad_log_decay, keys, false, &g.log_decay);
  } else if (p.decay == Decay::kHead && grads.grad_log_decay.data != nullptr) {
    const heed_status status =
        check_view("grad_log_decay", grads.grad_log_decay, {1, {p.heads}}, false, false, dtypes);
    if (status != HEED_OK) return status;
    g.log_decay = {static_cast<char*>(grads.grad_log_decay.data), grads.grad_log_decay.dtype, 0, 0,
                   grads.grad_log_decay.strides[0]};
  }
  if (p.bonus && grads.grad_bonus.data != nullptr) {
    const heed_status status =
        check_view("grad_bonus", grads.grad_bonus, {2, {p.heads, p.dk}}, false, true, dtypes);
    if (status != HEED_OK) return status;
    g.bonus = {static_cast<char*>(grads.grad_bonus.data), grads.grad_bonus.dtype, 0, 0,
               grads.grad_bonus.strides[0]};
  }
#undef HEED_SCAN_TAKE
  *out = g;
  return HEED_OK;
}

}  // namespace heed::kernel
