// scan_forward: every (sequence, head, block of value columns) is one task that carries its state
// over blocks of tokens (block-inl.h). The columns of a state never meet in the recurrence, so the
// result does not depend on how they are split over threads.
#include "kernel/parallel.h"
#include "kernel/scan/problem.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/scan/forward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/scan/block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

int64_t forward_scratch(const ScanProblem& s, int64_t width) {
  Arena arena(nullptr);
  const Block b(s, width, arena);
  arena.take(b.dk * b.lds);
  return arena.used();
}

void forward_task(const ScanProblem& s, int64_t n, int64_t h, ScanColumns columns, float* scratch) {
  Arena arena(scratch);
  Block b(s, columns.width, arena);
  float* state = arena.take(b.dk * b.lds);
  const auto span = s.span(n);
  load_state(s.initial_state, n, h, columns, b, state);
  start_blocks(s, b, span.b, h);
  for (int64_t t = 0; t < span.length; t += b.block) {
    const int64_t l = std::min(b.block, span.length - t);
    prepare_block(s, b, span.b, span.begin + t, h, l, columns);
    correct_values(b, state);
    read_block(b, state, static_cast<bool>(s.bonus));
    for (int64_t i = 0; i < l; ++i) {
      store_row(b.o + i * b.ldv, b.dv,
                const_cast<char*>(token_row(s.out, span.b, span.begin + t + i, h, columns.begin)),
                s.out.dtype);
    }
    advance_state(b, s.decay != Decay::kNone, state);
  }
  store_state(state, b, n, h, columns, s.final_state);
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(forward_scratch);
HWY_EXPORT(forward_task);

int64_t forward_floats(const ScanProblem& s, int32_t threads) {
  const int64_t blocks = scan_column_blocks(s.sequences * s.heads, s.dv, threads);
  return threads * HWY_DYNAMIC_DISPATCH(forward_scratch)(s, scan_widest(blocks, s.dv));
}

heed_status scan_forward(const ScanArgs& args, const heed_parallel* parallel) {
  ScanProblem s;
  heed_status status = check_scan(args, ScanDtypes::kKernel, true, &s);
  if (status != HEED_OK) return status;
  const int32_t threads = parallel_threads(parallel);
  const int64_t pairs = s.sequences * s.heads;
  if (pairs == 0) return HEED_OK;
  const int64_t blocks = scan_column_blocks(pairs, s.dv, threads);
  const int64_t floats = forward_floats(s, threads);
  ScanScratch scratch;
  status = scratch.take(args, floats);
  if (status != HEED_OK) return status;
  const auto task = HWY_DYNAMIC_DISPATCH(forward_task);
  parallel_for(parallel, pairs * blocks, [&](int64_t i, int32_t worker) {
    const int64_t pair = i / blocks;
    task(s, pair / s.heads, pair % s.heads, scan_columns(i % blocks, blocks, s.dv),
         scratch.floats() + worker * (floats / threads));
  });
  return HEED_OK;
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
