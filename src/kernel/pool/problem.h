// What every pass of the engine `pool` needs to know about a call, and how it is cut into tasks.
// Internal to src/kernel/pool.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel/call/check.h"
#include "kernel/call/scratch.h"
#include "kernel/call/strided.h"
#include "kernel/pool/pool.h"

namespace heed::kernel {

constexpr int64_t kPoolBlock = 64;         // tokens in a tile
constexpr int64_t kPoolSums = 128 * 1024;  // floats of the sums of a run of heads, at most

struct PoolProblem {
  int64_t queries = 0, keys = 0, heads = 0, kv_heads = 0, group = 1, dm = 0, dv = 0;
  int64_t sequences = 0;
  const int64_t* cu_seqlens = nullptr;
  PoolOptions options;
  PoolTensors<Strided> in, grad;
  // Keys, and queries, of one sequence and run of KV heads go to so many tasks; fixed by `threads`,
  // so that the same number of threads gives the same bits. Heads of a token often share a page of
  // memory: a task takes as many as their sums leave room for in the second cache.
  int64_t head_run = 1, key_parts = 1, query_parts = 1;

  struct Span {
    int64_t b, begin, length;
  };
  Span span(int64_t n, int64_t tokens) const {
    if (cu_seqlens == nullptr) return {n, 0, tokens};
    return {0, cu_seqlens[n], cu_seqlens[n + 1] - cu_seqlens[n]};
  }
  // Tokens [first, last) of a span that part i of `parts` has, whole blocks.
  static Span part(const Span& span, int64_t i, int64_t parts) {
    const int64_t blocks = (span.length + kPoolBlock - 1) / kPoolBlock;
    const int64_t first = std::min(span.length, blocks * i / parts * kPoolBlock);
    const int64_t last = std::min(span.length, blocks * (i + 1) / parts * kPoolBlock);
    return {span.b, span.begin + first, last - first};
  }
  int64_t pairs() const { return sequences * kv_heads; }
  int64_t head_runs() const { return (kv_heads + head_run - 1) / head_run; }
  bool divides() const { return options.a1 != 0; }
  bool needs_sums() const { return options.a1 != 0 || options.b1 != 0; }  // z
  bool needs_mean() const { return options.b0 != 0 || options.b1 != 0; }
  // Whether the mean value is taken off the read, most of which it may be: then S is summed over
  // values less their mean, so that nothing cancels.
  bool centred() const { return options.b1 != 0; }

  // Rows of tiles, in floats, and the sums of one part: S [M, V], z [M], the sum of values [V].
  int64_t ldm() const { return (dm + 15) / 16 * 16; }
  int64_t ldv() const { return (dv + 15) / 16 * 16; }
  // Rows of S, and of S transposed: a power of two between them would put a panel of 64 columns in
  // a part of the first cache's places.
  static int64_t spread(int64_t ld) { return ld % 128 == 0 ? ld + 16 : ld; }
  int64_t row() const { return spread(ldv()); }
  int64_t transposed_row() const { return spread(ldm()); }
  int64_t matrix() const { return (dm + 3) / 4 * 4 * row(); }
  int64_t transposed() const { return (dv + 3) / 4 * 4 * transposed_row(); }
  int64_t sums() const { return matrix() + ldm() + ldv(); }
};

// The shared memory of a call. Sums of pair p, part i: at + (p parts + i) sums; those of part 0
// become the pair's.
struct PoolMemory {
  const PoolProblem& s;
  float *key_sums, *key_transposed;    // [pairs][key_parts][sums], [pairs][transposed]
  float* means;                        // [pairs][ldv], of values; forward only, where centred
  float *grad_sums, *grad_transposed;  // [pairs][query_parts][sums]: gradients; backward only

  PoolMemory(const PoolProblem& problem, float* base)
      : s(problem),
        key_sums(base),
        key_transposed(key_sums + s.pairs() * s.key_parts * s.sums()),
        means(key_transposed),
        grad_sums(key_transposed + s.pairs() * s.transposed()),
        grad_transposed(grad_sums + s.pairs() * s.query_parts * s.sums()) {}
  static int64_t forward_floats(const PoolProblem& s) {
    return s.pairs() * (s.key_parts * s.sums() + (s.centred() ? s.ldv() : 0));
  }
  static int64_t backward_floats(const PoolProblem& s) {
    return s.pairs() * ((s.key_parts + s.query_parts) * s.sums() + 2 * s.transposed());
  }
  float* keys(int64_t pair, int64_t i = 0) const {
    return key_sums + (pair * s.key_parts + i) * s.sums();
  }
  float* mean(int64_t pair) const { return means + pair * s.ldv(); }
  float* grads(int64_t pair, int64_t i = 0) const {
    return grad_sums + (pair * s.query_parts + i) * s.sums();
  }
};

// One task: a part of the tokens of KV heads [first, last) of sequence n.
struct PoolTask {
  int64_t n, first, last, part;

  PoolTask(const PoolProblem& s, int64_t i, int64_t parts)
      : n(i / parts / s.head_runs()),
        first(i / parts % s.head_runs() * s.head_run),
        last(std::min(s.kv_heads, first + s.head_run)),
        part(i % parts) {}
  static int64_t count(const PoolProblem& s, int64_t parts) {
    return s.sequences * s.head_runs() * parts;
  }
};

struct PoolWorkers {
  Scratch scratch;
  void* workspace;

  float* of(int32_t worker) const { return scratch.of(workspace, worker); }
};

// Checks a call and cuts it into tasks for so many threads.
heed_status check_pool(const PoolCall& call, int32_t pass, CallDtypes dtypes, int32_t threads,
                       PoolProblem* problem, heed_message* message);

int64_t pool_forward_floats(const PoolProblem& s);   // of one worker
int64_t pool_backward_floats(const PoolProblem& s);  // of one worker

// The sums of all keys; with `transpose` S also transposed, with `centre` those of values less
// memory.means.
void pool_sums(const PoolProblem& s, const PoolMemory& memory, bool transpose, bool centre,
               const PoolWorkers& workers, const heed_parallel* parallel);
// The sums of all parts into those of part 0, and those transposed where asked for.
void pool_reduce(const PoolProblem& s, float* sums, int64_t parts, float* transposed,
                 const heed_parallel* parallel);
void pool_forward(const PoolProblem& s, const PoolWorkers& workers, const heed_parallel* parallel);
void pool_backward(const PoolProblem& s, const PoolWorkers& workers, const heed_parallel* parallel);

}  // namespace heed::kernel
