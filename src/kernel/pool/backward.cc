// pool_backward: the sums once more, then over the queries the gradients by q, row_scale and the
// sums, then over the keys those by k, v and key_weight.
#include "kernel/parallel.h"
#include "kernel/pool/problem.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/pool/backward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/pool/block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

struct BackwardTiles {
  float *q, *dq, *v, *dv, *factors, *by_factors;  // q: also k; dq: also dk
  float *z, *u;                                   // what a tile adds to the gradients by the sums

  BackwardTiles(const PoolProblem& s, Arena& arena)
      : q(arena.take(kPoolBlock * s.ldm())),
        dq(arena.take(kPoolBlock * s.ldm())),
        v(arena.take(kPoolBlock * s.ldv())),
        dv(arena.take(kPoolBlock * s.ldv())),
        factors(arena.take(kPoolBlock)),
        by_factors(arena.take(kPoolBlock)),
        z(arena.take(s.ldm())),
        u(arena.take(s.ldv())) {
    if (q != nullptr) std::fill_n(q, arena.used(), 0.0f);
  }
};

int64_t pool_backward_scratch(const PoolProblem& s) {
  Arena arena(nullptr);
  const BackwardTiles tiles(s, arena);
  return arena.used();
}

// One row of queries: from the gradient by out (in `go`) to that by the plain read q S (in `go` as
// well), adding to the gradient by u; returns the gradient by q.z.
HWY_INLINE double row_gradient(const PoolProblem& s, int64_t keys, const PoolSums& sums,
                               const float* q, const float* read, float scale, float* go,
                               float* grad_u, float* by_scale) {
  const double sum = s.needs_sums() ? row_dot(q, sums.z, s.ldm()) : 0;
  const PoolFactors by(s, keys, sum);
  const double by_read = row_dot(go, read, s.ldv());
  const double by_mean = s.needs_mean() ? row_dot(go, sums.u, s.ldv()) : 0;
  *by_scale = static_cast<float>(by.read * by_read + by.mean * by_mean);
  if (s.needs_mean()) add_row(go, static_cast<float>(scale * by.mean), s.ldv(), grad_u);
  const auto factor = static_cast<float>(scale * by.read);
  for (int64_t e = 0; e < s.ldv(); ++e) go[e] *= factor;
  return scale * (by.read_slope * by_read + by.mean_slope * by_mean);
}

// The queries of one part, of all heads that read one head of keys.
void query_task(const PoolProblem& s, int64_t n, int64_t j, int64_t part, float* from,
                const float* transposed, float* to, float* scratch) {
  Arena arena(scratch);
  const BackwardTiles x(s, arena);
  const PoolSums sums(s, from), grads(s, to);
  std::fill_n(to, s.sums(), 0.0f);
  const int64_t keys = s.span(n, s.keys).length, ldm = s.ldm(), ldv = s.ldv();
  const auto queries = PoolProblem::part(s.span(n, s.queries), part, s.query_parts);
  for (int64_t h = j * s.group; h < (j + 1) * s.group; ++h) {
    for (int64_t t = 0; t < queries.length; t += kPoolBlock) {
      const int64_t rows = std::min(kPoolBlock, queries.length - t), first = queries.begin + t;
      load_tile(s.in.q, queries.b, first, h, rows, s.dm, nullptr, x.q, ldm);
      if (s.grad.out) {
        load_tile(s.grad.out, queries.b, first, h, rows, s.dv, nullptr, x.v, ldv);
      } else {
        std::fill_n(x.v, rows * ldv, 0.0f);
      }
      load_factors(s.in.row_scale, queries.b, first, h, rows, x.factors);
      product(rows, s.dv, s.dm, {x.q, ldm, 1}, sums.s, s.row(), x.dv, ldv, Init::kZero);
      double by_sum[kPoolBlock];
      std::fill_n(x.z, ldm, 0.0f);
      std::fill_n(x.u, ldv, 0.0f);
      for (int64_t i = 0; i < rows; ++i) {
        const float scale = keys == 0 ? 0 : x.factors[i];
        by_sum[i] = row_gradient(s, keys, sums, x.q + i * ldm, x.dv + i * ldv, scale, x.v + i * ldv,
                                 x.u, x.by_factors + i);
        if (keys == 0) x.by_factors[i] = 0;
      }
      product(rows, s.dm, s.dv, {x.v, ldv, 1}, transposed, s.transposed_row(), x.dq, ldm,
              Init::kZero);
      product(s.dm, s.dv, rows, {x.q, 1, ldm}, x.v, ldv, grads.s, s.row(), Init::kAdd);
      for (int64_t i = 0; s.needs_sums() && i < rows; ++i) {
        add_row(sums.z, static_cast<float>(by_sum[i]), ldm, x.dq + i * ldm);
        add_row(x.q + i * ldm, static_cast<float>(by_sum[i]), ldm, x.z);
      }
      if (s.needs_sums()) add_row(x.z, 1, ldm, grads.z);
      if (s.needs_mean()) add_row(x.u, 1, ldv, grads.u);
      if (s.grad.q) store_tile(x.dq, ldm, rows, s.dm, s.grad.q, queries.b, first, h);
      for (int64_t i = 0; s.grad.row_scale && i < rows; ++i) {
        s.grad.row_scale.scalar(queries.b, first + i, h) = x.by_factors[i];
      }
    }
  }
}

void key_task(const PoolProblem& s, int64_t n, int64_t j, int64_t part, float* from,
              const float* transposed, float* scratch) {
  Arena arena(scratch);
  const BackwardTiles x(s, arena);
  const PoolSums grads(s, from);
  const int64_t ldm = s.ldm(), ldv = s.ldv();
  const auto keys = PoolProblem::part(s.span(n, s.keys), part, s.key_parts);
  for (int64_t t = 0; t < keys.length; t += kPoolBlock) {
    const int64_t rows = std::min(kPoolBlock, keys.length - t), first = keys.begin + t;
    load_tile(s.in.k, keys.b, first, j, rows, s.dm, nullptr, x.q, ldm);
    load_tile(s.in.v, keys.b, first, j, rows, s.dv, nullptr, x.v, ldv);
    load_factors(s.in.key_weight, keys.b, first, j, rows, x.factors);
    product(rows, s.dm, s.dv, {x.v, ldv, 1}, transposed, s.transposed_row(), x.dq, ldm,
            Init::kZero);
    product(rows, s.dv, s.dm, {x.q, ldm, 1}, grads.s, s.row(), x.dv, ldv, Init::kZero);
    for (int64_t i = 0; i < rows; ++i) {
      float *dk = x.dq + i * ldm, *dv = x.dv + i * ldv;
      if (s.needs_sums()) add_row(grads.z, 1, ldm, dk);
      if (s.grad.key_weight) {
        s.grad.key_weight.scalar(keys.b, first + i, j) = row_dot(x.q + i * ldm, dk, ldm);
      }
      for (int64_t e = 0; e < ldm; ++e) dk[e] *= x.factors[i];
      for (int64_t e = 0; e < ldv; ++e) dv[e] *= x.factors[i];
      if (s.needs_mean()) add_row(grads.u, 1, ldv, dv);
    }
    if (s.grad.k) store_tile(x.dq, ldm, rows, s.dm, s.grad.k, keys.b, first, j);
    if (s.grad.v) store_tile(x.dv, ldv, rows, s.dv, s.grad.v, keys.b, first, j);
  }
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(pool_backward_scratch);
HWY_EXPORT(query_task);
HWY_EXPORT(key_task);

int64_t pool_backward_floats(const PoolProblem& s) {
  return std::max(pool_forward_floats(s), HWY_DYNAMIC_DISPATCH(pool_backward_scratch)(s));
}

void pool_backward(const PoolProblem& s, const PoolWorkers& workers,
                   const heed_parallel* parallel) {
  const PoolMemory memory(s, workers.scratch.all(workers.workspace));
  pool_sums(s, memory, true, false, workers, parallel);
  const auto queries = HWY_DYNAMIC_DISPATCH(query_task);
  parallel_for(parallel, s.pairs() * s.query_parts, [&](int64_t i, int32_t worker) {
    const int64_t pair = i / s.query_parts, part = i % s.query_parts;
    queries(s, pair / s.kv_heads, pair % s.kv_heads, part, memory.keys(pair),
            memory.key_transposed + pair * s.transposed(), memory.grads(pair, part),
            workers.of(worker));
  });
  pool_reduce(s, memory.grad_sums, s.query_parts, memory.grad_transposed, parallel);
  const auto keys = HWY_DYNAMIC_DISPATCH(key_task);
  parallel_for(parallel, s.pairs() * s.key_parts, [&](int64_t i, int32_t worker) {
    const int64_t pair = i / s.key_parts;
    keys(s, pair / s.kv_heads, pair % s.kv_heads, i % s.key_parts, memory.grads(pair),
         memory.grad_transposed + pair * s.transposed(), workers.of(worker));
  });
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
