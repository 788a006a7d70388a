// scan_forward: every (sequence, few heads, block of value columns) is one task that carries its
// states over blocks of tokens: with a correction by products of matrices (block-inl.h), without
// one as the recurrence is written (sweep-inl.h). The columns of a state never meet in the
// recurrence, so the result does not depend on how they are split over threads.
#include <hwy/cache_control.h>

#include <algorithm>
#include <cmath>

#include "kernel/parallel.h"
#include "kernel/scan/problem.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/scan/forward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/scan/block-inl.h"
#include "kernel/scan/sweep-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

// Heads [h0, h0 + heads) of sequence n, block of tokens by block of tokens: the rows of
// neighbouring heads are neighbours in memory.
void block_task(const ScanProblem& s, int64_t n, int64_t h0, int64_t heads, ScanColumns columns,
                Arena& arena) {
  Block b(s, columns.width, heads, arena);
  float* states = arena.take(heads * b.floats());
  if (states == nullptr) return;  // only counted
  StoredState stored[kScanHeads];
  const auto span = s.span(n);
  for (int64_t h = 0; h < heads; ++h) {
    load_state(s.initial_state, n, h0 + h, columns, b, states + h * b.floats());
  }
  b.tokens.ahead = b.block;
  b.tokens.first = span.begin;
  b.tokens.last = span.begin + span.length;
  // Rows of whole vectors go to the caller's memory without a detour.
  const bool direct = s.out.dtype == HEED_FLOAT32 && b.dv == b.ldv;
  b.streams = direct && rows_stream(s, s.out, s.dv, columns.begin);
  for (int64_t t = 0; t < span.length; t += b.block) {
    const int64_t l = std::min(b.block, span.length - t);
    for (int64_t h = 0; h < heads; ++h) {
      float* state = states + h * b.floats();
      b.use_head(h);
      b.stored = &stored[h];
      prepare_block(s, b, span.b, span.begin + t, h0 + h, l, columns);
      correct_values(b, state);
      char* out =
          const_cast<char*>(token_row(s.out, span.b, span.begin + t, h0 + h, columns.begin));
      if (direct) {
        read_block(b, state, static_cast<bool>(s.bonus),
                   {reinterpret_cast<float*>(out), s.out.t, b.streams});
      } else {
        read_block(b, state, static_cast<bool>(s.bonus), {b.o, b.ldv});
        store_rows(b.o, b.ldv, l, b.dv, out, s.out.t * dtype_size(s.out.dtype), s.out.dtype);
      }
      advance_state(b, decayed(b, s.decay != Decay::kNone, stored[h]), state);
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    const auto scale = static_cast<float>(stored[h].scale);
    store_state(states + h * b.floats(), &scale, 0, b, n, h0 + h, columns, s.final_state);
  }
}

void sweep_task(const ScanProblem& s, int64_t n, int64_t h0, int64_t heads, ScanColumns columns,
                Arena& arena) {
  const DF d;
  Sweep b(s, columns.width, arena);
  float* states = arena.take(heads * b.floats());
  float* scales = arena.take(b.channel ? 2 * heads * b.ldk : 0);
  if (states == nullptr) return;  // only counted
  b.begin();
  b.streams = rows_stream(s, s.out, s.dv, columns.begin);
  StateScale scale[kScanHeads];
  const auto span = s.span(n);
  for (int64_t h = 0; h < heads; ++h) {
    load_state(s.initial_state, n, h0 + h, columns, b, states + h * b.floats());
    if (!b.channel) continue;
    scale[h].hi = scales + 2 * h * b.ldk;
    scale[h].lo = scale[h].hi + b.ldk;
    std::fill_n(scale[h].hi, 2 * b.ldk, 0.0f);
  }
  b.tokens.ahead = b.block;
  b.tokens.first = span.begin;
  b.tokens.last = span.begin + span.length;
  for (int64_t t = 0; t < span.length; t += b.block) {
    const int64_t l = std::min(b.block, span.length - t);
    for (int64_t h = 0; h < heads; ++h) {
      prepare_sweep(s, b, span.b, span.begin + t, h0 + h, l, columns, &scale[h]);
      sweep(s, b, columns, states + h * b.floats());
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    auto one = static_cast<float>(std::exp(scale[h].sum));
    float* factors = b.channel ? scale[h].hi : &one;
    for (int64_t e = 0; b.channel && e < b.ldk; e += kLanes) {
      const VF lo = hn::LoadU(d, scale[h].lo + e);
      hn::StoreU(exp_of_sum(hn::LoadU(d, factors + e), lo), d, factors + e);
    }
    store_state(states + h * b.floats(), factors, b.channel ? 1 : 0, b, n, h0 + h, columns,
                s.final_state);
  }
}

// With scratch == nullptr only counts the floats that it needs.
int64_t forward_task(const ScanProblem& s, int64_t n, int64_t h0, int64_t heads,
                     ScanColumns columns, float* scratch) {
  Arena arena(scratch);
  const auto task = s.correction == Correction::kNone ? sweep_task : block_task;
  task(s, n, h0, heads, columns, arena);
  hwy::FlushStream();  // before another thread is told that the outputs are there
  return arena.used();
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(forward_task);

namespace {

// How a call is cut into tasks: groups of heads of one sequence, and blocks of columns.
struct Tasks {
  int64_t group, groups, column_blocks, widest;
};

Tasks tasks_of(const ScanProblem& s, int32_t threads) {
  const int64_t pairs = s.sequences * s.heads;
  Tasks t;
  t.column_blocks = scan_column_blocks(pairs, s.dv, threads);
  t.widest = scan_widest(t.column_blocks, s.dv);
  // Several heads a task, for their rows are neighbours in memory: as many as leave every thread a
  // task and keep their states in a small part of the second-level cache.
  const int64_t cached = std::max<int64_t>(1, (168 << 10) / (4 * s.dk * (t.widest + 16)));
  const int64_t most = std::min({cached, s.heads, kScanHeads});
  const int64_t fair = pairs / threads;
  t.group = t.column_blocks > 1 ? 1 : std::clamp<int64_t>(fair, 1, most);
  t.groups = (s.heads + t.group - 1) / t.group;
  return t;
}

}  // namespace

static int64_t forward_floats(const ScanProblem& s, int32_t threads) {
  const Tasks tasks = tasks_of(s, threads);
  return HWY_DYNAMIC_DISPATCH(forward_task)(s, 0, 0, tasks.group, {0, tasks.widest}, nullptr);
}

int64_t scan_forward_bytes(const ScanProblem& s, int32_t threads) {
  return ScanScratch::bytes(forward_floats(s, threads), threads);
}

void scan_forward(const ScanProblem& s, void* workspace, const heed_parallel* parallel) {
  const int32_t threads = parallel_threads(parallel);
  const Tasks tasks = tasks_of(s, threads);
  const ScanScratch scratch(workspace, forward_floats(s, threads), threads);
  const auto task = HWY_DYNAMIC_DISPATCH(forward_task);
  const int64_t a_sequence = tasks.groups * tasks.column_blocks;
  parallel_for(parallel, s.sequences * a_sequence, [&](int64_t i, int32_t worker) {
    const int64_t n = i / a_sequence, group = i / tasks.column_blocks % tasks.groups;
    // Heads spread evenly over the groups.
    const int64_t first = s.heads * group / tasks.groups;
    const int64_t last = s.heads * (group + 1) / tasks.groups;
    task(s, n, first, last - first,
         scan_columns(i % tasks.column_blocks, tasks.column_blocks, s.dv), scratch.of(worker));
  });
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
