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

  ScanTensor() = default;
  ScanTensor(char* data, int32_t dtype, int64_t b, int64_t t, int64_t h)
      : data(data), dtype(dtype), b(b), t(t), h(h) {}
  // Of a token tensor, a state, [B,T,H]; [H] and [H,Dk] have a head alone. Without elements:
  // absent.
  explicit ScanTensor(const heed_view& view);
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

  ScanProblem() = default;
  explicit ScanProblem(const ScanCall& call);  // checked
};

struct ScanGradProblem {
  ScanTensor grad_out, grad_final_state;
  ScanTensor q, k, v, p, r, beta, log_decay, bonus, initial_state;

  explicit ScanGradProblem(const ScanCall& call);
};

// The scratch of a call, a piece of its workspace for each worker.
class ScanScratch {
 public:
  // Bytes of workspace for `floats` a worker.
  static int64_t bytes(int64_t floats, int32_t threads);
  ScanScratch(void* workspace, int64_t floats, int32_t threads);
  // 64-byte aligned and kWorkerGap apart, zeros when a worker first asks for its own: from the core
  // that uses them.
  float* of(int32_t worker) const;

 private:
  char* at_ = nullptr;
  int64_t floats_ = 0;
};

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

// The passes, and the bytes of workspace of each.
void scan_forward(const ScanProblem& s, void* workspace, const heed_parallel* parallel);
void scan_step(const ScanProblem& s, void* workspace, const heed_parallel* parallel);
void scan_backward(const ScanProblem& s, const ScanGradProblem& grads, void* workspace,
                   const heed_parallel* parallel);
int64_t scan_forward_bytes(const ScanProblem& s, int32_t threads);
int64_t scan_step_bytes(const ScanProblem& s, int32_t threads);
int64_t scan_backward_bytes(const ScanProblem& s, int32_t threads);

}  // namespace heed::kernel
