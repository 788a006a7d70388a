// What every pass of the engine `scan` needs to know about a call: checked sizes, sequences, and
// tensors as pointers with element strides. Internal to src/kernel/scan.
#pragma once

#include <cstdint>

#include "kernel/scan/scan.h"

namespace heed::kernel {

// [B, T, H, *] or a state [N, H, Dk, Dv] (then `t` is the stride of the head and `h` that of the
// row); the last dimension is contiguous. data == nullptr: absent.
struct ScanTensor {
  char* data = nullptr;
  int32_t dtype = HEED_FLOAT32;
  int64_t b = 0, t = 0, h = 0;  // strides in elements

  explicit operator bool() const { return data != nullptr; }
};

struct ScanProblem {
  int64_t batch = 0, time = 0, heads = 0, dk = 0, dv = 0;
  int64_t sequences = 0;  // batch, or the number of sequences of a pack
  const int64_t* cu_seqlens = nullptr;
  Decay decay = Decay::kNone;
  Correction correction = Correction::kNone;
  Read read = Read::kAfter;
  float scale = 1;
  int64_t chunk = 64;
  ScanTensor q, k, v, p, r, beta, log_decay, bonus, initial_state, out, final_state;

  // Where sequence n lies: row of the batch, first token, number of tokens.
  struct Span {
    int64_t b, begin, length;
  };
  Span span(int64_t n) const {
    if (cu_seqlens == nullptr) return {n, 0, time};
    return {0, cu_seqlens[n], cu_seqlens[n + 1] - cu_seqlens[n]};
  }
  bool read_before() const { return read == Read::kBefore; }
};

struct ScanGradProblem {
  ScanTensor grad_out, grad_final_state;
  ScanTensor q, k, v, p, r, beta, log_decay, bonus, initial_state;
};

enum class ScanDtypes { kKernel, kReference };  // kReference also takes float64 anywhere

// Checks the call and fills `problem` (and `grads`). On failure the status says what kind, and
// scan_message() of this thread what and where.
heed_status check_scan(const ScanArgs& args, ScanDtypes dtypes, bool need_out,
                       ScanProblem* problem);
heed_status check_scan_grads(const ScanGrads& grads, ScanDtypes dtypes, const ScanProblem& problem,
                             ScanGradProblem* out);

// The scratch of a call, a piece for each worker: the caller's workspace, or memory of its own.
class ScanScratch {
 public:
  ScanScratch() = default;
  ScanScratch(const ScanScratch&) = delete;
  ScanScratch& operator=(const ScanScratch&) = delete;
  ~ScanScratch();

  // Bytes of workspace for `floats` a worker.
  static int64_t bytes(int64_t floats, int32_t threads);
  heed_status take(const ScanArgs& args, int64_t floats, int32_t threads);
  // 64-byte aligned and kWorkerGap apart, zeros when a worker first asks for its own: from the core
  // that uses them.
  float* of(int32_t worker) const;

 private:
  char* at_ = nullptr;
  int64_t floats_ = 0;
  void* own_ = nullptr;
};

heed_status scan_fail(heed_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// Into how many blocks the columns of the states are split, so that `threads` workers have equal
// shares: the columns of S never meet in the recurrence. Blocks are whole multiples of 16 columns.
inline int64_t scan_column_blocks(int64_t pairs, int64_t dv, int32_t threads) {
  const int64_t most = (dv + 15) / 16;
  int64_t blocks = 1;
  while (blocks < most && pairs * blocks < 4 * threads && pairs * blocks % threads != 0) ++blocks;
  return blocks;
}

struct ScanColumns {
  int64_t begin, width;
};
inline ScanColumns scan_columns(int64_t block, int64_t blocks, int64_t dv) {
  const int64_t tiles = (dv + 15) / 16;
  const int64_t first = tiles * block / blocks * 16;
  int64_t last = tiles * (block + 1) / blocks * 16;
  if (last > dv) last = dv;
  return {first, last - first};
}

// The widest of the blocks.
inline int64_t scan_widest(int64_t blocks, int64_t dv) {
  const int64_t tiles = ((dv + 15) / 16 + blocks - 1) / blocks;
  return tiles * 16 < dv ? tiles * 16 : dv;
}

constexpr int64_t kScanHeads = 8;  // heads that one task of the forward pass takes at most

// Scratch of a whole call, in floats.
int64_t forward_floats(const ScanProblem& s, int32_t threads);
int64_t step_floats(const ScanProblem& s, int32_t threads);

}  // namespace heed::kernel
