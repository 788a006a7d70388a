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

namespace {

// Sizes and options of the call; `p` is filled with them.
heed_status check_sizes(const ScanArgs& args, ScanProblem& p) {
  if (args.struct_size != sizeof(ScanArgs)) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: ScanArgs of another version (%u bytes, not %zu)",
                     args.struct_size, sizeof(ScanArgs));
  }
  if (args.q.data == nullptr && args.q.rank != 4) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: q is missing");
  }
  if (args.q.rank != 4 || args.v.rank != 4) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: q and v must have rank 4, [B, T, H, D]");
  }
  p.batch = p.sequences = args.q.sizes[0];
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
  if (p.correction < Correction::kNone || p.correction > Correction::kGeneral) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: unknown correction %d",
                     static_cast<int>(p.correction));
  }
  if (p.decay < Decay::kNone || p.decay > Decay::kChannel) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: unknown decay %d", static_cast<int>(p.decay));
  }
  if (p.read != Read::kAfter && p.read != Read::kBefore) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: unknown read %d", static_cast<int>(p.read));
  }
  if (args.bonus.data != nullptr && p.read != Read::kBefore) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: bonus needs read = before");
  }
  return HEED_OK;
}

heed_status check_pack(const ScanArgs& args, ScanProblem& p) {
  if (args.cu_seqlens == nullptr) return HEED_OK;
  const int64_t n = args.sequences;
  if (p.batch != 1 || n < 0) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: a pack (cu_seqlens) has B = 1, not %lld",
                     static_cast<long long>(p.batch));
  }
  if (args.cu_seqlens[0] != 0 || args.cu_seqlens[n] != p.time) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: cu_seqlens must start at 0 and end at T = %lld",
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
  return HEED_OK;
}

// Takes the tensors of a call one after another; the first that does not fit stays the status.
class Taker {
 public:
  enum Needed { kOptional, kRequired };

  Taker(const ScanProblem& p, ScanDtypes dtypes)
      : dtypes_(dtypes),
        // A tensor of no tokens may have a null pointer.
        empty_(p.batch == 0 || p.time == 0),
        keys_{4, {p.batch, p.time, p.heads, p.dk}},
        values_{4, {p.batch, p.time, p.heads, p.dv}},
        scalars_{3, {p.batch, p.time, p.heads}},
        states_{4, {p.sequences, p.heads, p.dk, p.dv}},
        heads_{1, {p.heads}},
        channels_{2, {p.heads, p.dk}} {}

  // Token tensors [B, T, H, Dk] and [B, T, H, Dv].
  ScanTensor keys(const char* name, const heed_view& view, Needed needed) {
    return take(name, view, keys_, true, needed, true);
  }
  ScanTensor values(const char* name, const heed_view& view, Needed needed) {
    return take(name, view, values_, true, needed, true);
  }
  ScanTensor scalars(const char* name, const heed_view& view, Needed needed) {
    return take(name, view, scalars_, false, needed, true);
  }
  ScanTensor state(const char* name, const heed_view& view) {
    return take(name, view, states_, false, kOptional, true);
  }
  // [H, Dk], the same for every token.
  ScanTensor channels(const char* name, const heed_view& view) {
    return take(name, view, channels_, false, kOptional, false);
  }
  ScanTensor log_decay(const char* name, const heed_view& view, Decay decay, Needed needed) {
    switch (decay) {
      case Decay::kNone:
        return {};
      case Decay::kHead:
        return take(name, view, heads_, false, needed, false);
      case Decay::kToken:
        return take(name, view, scalars_, false, needed, true);
      case Decay::kChannel:
        return take(name, view, keys_, false, needed, true);
    }
    return {};
  }

  heed_status status() const { return status_; }
  bool empty() const { return empty_; }

 private:
  ScanTensor take(const char* name, const heed_view& view, const Shape& shape, bool token,
                  Needed needed, bool of_tokens) {
    if (status_ != HEED_OK) return {};
    if (view.data == nullptr) {
      if (needed == kRequired && !(empty_ && of_tokens)) {
        status_ = scan_fail(HEED_INVALID_ARGUMENT, "scan: %s is missing", name);
      }
      return {};
    }
    const bool rows = shape.rank == 4 || shape.rank == 2;
    status_ = check_view(name, view, shape, token, rows, dtypes_);
    if (status_ != HEED_OK) return {};
    if (of_tokens) return tokens(view);
    return {static_cast<char*>(view.data), view.dtype, 0, 0, view.strides[0]};
  }

  ScanDtypes dtypes_;
  bool empty_;
  Shape keys_, values_, scalars_, states_, heads_, channels_;
  heed_status status_ = HEED_OK;
};

}  // namespace

heed_status check_scan(const ScanArgs& args, ScanDtypes dtypes, bool need_out,
                       ScanProblem* problem) {
  message[0] = 0;
  ScanProblem p;
  heed_status status = check_sizes(args, p);
  if (status == HEED_OK) status = check_pack(args, p);
  if (status != HEED_OK) return status;
  Taker take(p, dtypes);
  p.q = take.keys("q", args.q, Taker::kRequired);
  p.k = take.keys("k", args.k, Taker::kRequired);
  p.v = take.values("v", args.v, Taker::kRequired);
  if (p.correction == Correction::kGeneral) {
    p.p = take.keys("p", args.p, Taker::kRequired);
    p.r = take.keys("r", args.r, Taker::kRequired);
  } else if (p.correction == Correction::kDelta) {
    p.beta = take.scalars("beta", args.beta, Taker::kRequired);
  }
  p.log_decay = take.log_decay("log_decay", args.log_decay, p.decay, Taker::kRequired);
  p.bonus = take.channels("bonus", args.bonus);
  p.initial_state = take.state("initial_state", args.initial_state);
  if (need_out) {
    p.out = take.values("out", args.out, Taker::kRequired);
    p.final_state = take.state("final_state", args.final_state);
  }
  if (take.status() != HEED_OK) return take.status();
  if (dtypes == ScanDtypes::kKernel && !take.empty()) {
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
  Taker take(p, dtypes);
  ScanGradProblem g;
  g.grad_out = take.values("grad_out", grads.grad_out, Taker::kRequired);
  g.grad_final_state = take.state("grad_final_state", grads.grad_final_state);
  g.initial_state = take.state("grad_initial_state", grads.grad_initial_state);
  g.q = take.keys("grad_q", grads.grad_q, Taker::kOptional);
  g.k = take.keys("grad_k", grads.grad_k, Taker::kOptional);
  g.v = take.values("grad_v", grads.grad_v, Taker::kOptional);
  if (p.correction == Correction::kGeneral) {
    g.p = take.keys("grad_p", grads.grad_p, Taker::kOptional);
    g.r = take.keys("grad_r", grads.grad_r, Taker::kOptional);
  } else if (p.correction == Correction::kDelta) {
    g.beta = take.scalars("grad_beta", grads.grad_beta, Taker::kOptional);
  }
  g.log_decay = take.log_decay("grad_log_decay", grads.grad_log_decay, p.decay, Taker::kOptional);
  if (p.bonus) g.bonus = take.channels("grad_bonus", grads.grad_bonus);
  if (take.status() != HEED_OK) return take.status();
  if (dtypes == ScanDtypes::kKernel && !take.empty() && g.grad_out.dtype != p.v.dtype) {
    return scan_fail(HEED_INVALID_ARGUMENT, "scan: grad_out and v differ in dtype");
  }
  *out = g;
  return HEED_OK;
}

}  // namespace heed::kernel
