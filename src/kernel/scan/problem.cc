// What the list of fields cannot say about a call of scan, the call as its passes want it, and the
// CPU row of the table.
#include "kernel/scan/problem.h"

#include <cstring>

#include "kernel/parallel.h"

namespace heed::kernel {

heed_status scan_rules(const void* c, int32_t /*pass*/, const CallSizes& sizes,
                       heed_message* message) {
  const auto& call = *static_cast<const ScanCall*>(c);
  const auto fail = [&](const char* text) {
    return call_fail(kScan, HEED_INVALID_ARGUMENT, message, "%s", text);
  };
  if (sizes["K"] < 1 || sizes["V"] < 1) return fail("K and V must be at least 1");
  if (given(call.in.p) != given(call.in.r)) return fail("p and r come together");
  if (given(call.in.p) && given(call.in.beta)) return fail("beta does not go with p and r");
  if (given(call.in.bonus) && !call.options.read_before) return fail("bonus needs read_before");
  if (call.options.chunk < 1 || call.options.chunk > 1024) {
    return call_fail(kScan, HEED_INVALID_ARGUMENT, message, "chunk is %lld, expected 1 to 1024",
                     static_cast<long long>(call.options.chunk));
  }
  return HEED_OK;
}

ScanTensor::ScanTensor(const heed_view& view) {
  for (int32_t i = 0; i < view.rank; ++i) {
    if (view.sizes[i] == 0) return;
  }
  data = static_cast<char*>(view.data);
  dtype = view.dtype;
  if (view.rank == 1 || view.rank == 2) h = view.strides[0];
  if (view.rank >= 3) b = view.strides[0], t = view.strides[1], h = view.strides[2];
}

ScanProblem::ScanProblem(const ScanCall& call)
    : batch(call.in.q.sizes[0]),
      time(call.in.q.sizes[1]),
      heads(call.in.q.sizes[2]),
      dk(call.in.q.sizes[3]),
      dv(call.in.v.sizes[3]),
      sequences(call.head.cu_seqlens ? call.head.sequences : batch),
      cu_seqlens(call.head.cu_seqlens),
      read(call.options.read_before ? Read::kBefore : Read::kAfter),
      scale(static_cast<float>(call.options.scale)),
      chunk(call.options.chunk),
      q(call.in.q),
      k(call.in.k),
      v(call.in.v),
      p(call.in.p),
      r(call.in.r),
      beta(call.in.beta),
      log_decay(call.in.log_decay),
      bonus(call.in.bonus),
      initial_state(call.in.initial_state),
      out(call.in.out),
      final_state(call.in.final_state) {
  if (given(call.in.p)) correction = Correction::kGeneral;
  if (given(call.in.beta)) correction = Correction::kDelta;
  if (given(call.in.log_decay)) {
    const int32_t rank = call.in.log_decay.rank;
    decay = rank == 1 ? Decay::kHead : rank == 3 ? Decay::kToken : Decay::kChannel;
  }
}

ScanGradProblem::ScanGradProblem(const ScanCall& call)
    : grad_out(call.grad.out),
      grad_final_state(call.grad.final_state),
      q(call.grad.q),
      k(call.grad.k),
      v(call.grad.v),
      p(call.grad.p),
      r(call.grad.r),
      beta(call.grad.beta),
      log_decay(call.grad.log_decay),
      bonus(call.grad.bonus),
      initial_state(call.grad.initial_state) {}

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

ScanScratch::ScanScratch(void* workspace, int64_t floats, int32_t threads) : floats_(floats) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(workspace) + kAlignment - 1;
  at_ = reinterpret_cast<char*>(at / kAlignment * kAlignment);
  for (int32_t worker = 0; worker < threads; ++worker) at_[worker * bytes_a_worker(floats)] = 0;
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

namespace {

int64_t workspace(const void* c, int32_t pass, int32_t threads) {
  const ScanProblem s(*static_cast<const ScanCall*>(c));
  if (s.sequences == 0 || s.heads == 0) return 0;
  switch (pass) {
    case HEED_STEP:
      return scan_step_bytes(s, threads);
    case HEED_BACKWARD:
      return scan_backward_bytes(s, threads);
    default:
      return scan_forward_bytes(s, threads);
  }
}

heed_status run(const void* c, int32_t pass, void* workspace, void* /*stream*/,
                const heed_parallel* parallel, heed_message* message) {
  const auto& call = *static_cast<const ScanCall*>(c);
  const ScanProblem s(call);
  if (s.sequences == 0 || s.heads == 0) return HEED_OK;
  if (pass != HEED_BACKWARD && s.time > 0 && !s.out) {
    return call_fail(kScan, HEED_INVALID_ARGUMENT, message, "out [B,T,H,V] is missing");
  }
  switch (pass) {
    case HEED_STEP:
      scan_step(s, workspace, parallel);
      break;
    case HEED_BACKWARD:
      scan_backward(s, ScanGradProblem(call), workspace, parallel);
      break;
    default:
      scan_forward(s, workspace, parallel);
  }
  return HEED_OK;
}

}  // namespace

std::span<const heed_backend> scan_backends() {
  static const heed_backend rows[] = {
      {sizeof(heed_backend), "scan", "cpu", HEED_CPU, 100, nullptr, workspace, nullptr, run}};
  return rows;
}

}  // namespace heed::kernel
