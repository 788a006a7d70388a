// pool_forward: the sums of all keys, part by part, then every query's read. Two products of
// matrices, and nothing of size T x S.
#include "kernel/parallel.h"
#include "kernel/pool/problem.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/pool/forward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/pool/block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

struct ForwardTiles {
  float *q, *k, *v, *o, *factors;

  ForwardTiles(const PoolProblem& s, Arena& arena)
      : q(arena.take(kPoolBlock * s.ldm())),
        k(arena.take(kPoolBlock * s.ldm())),
        v(arena.take(kPoolBlock * s.ldv())),
        o(arena.take(kPoolBlock * s.ldv())),
        factors(arena.take(kPoolBlock)) {}
};

int64_t pool_scratch(const PoolProblem& s) {
  Arena arena(nullptr);
  const ForwardTiles tiles(s, arena);
  return arena.used();
}

// The sum of the values of one part, as sums.u.
void mean_task(const PoolProblem& s, int64_t n, int64_t j, int64_t part, float* to,
               float* scratch) {
  Arena arena(scratch);
  const ForwardTiles x(s, arena);
  const PoolSums sums(s, to);
  std::fill_n(sums.u, s.ldv(), 0.0f);
  const auto keys = PoolProblem::part(s.span(n, s.keys), part, s.key_parts);
  for (int64_t t = 0; t < keys.length; t += kPoolBlock) {
    const int64_t rows = std::min(kPoolBlock, keys.length - t);
    load_tile(s.in.v, keys.b, keys.begin + t, j, rows, s.dv, nullptr, x.v, s.ldv());
    add_rows(x.v, s.ldv(), rows, s.ldv(), sums.u);
  }
}

// The sums of one part of the keys of one sequence and head, of values less `centre` if there is
// one.
void sum_task(const PoolProblem& s, int64_t n, int64_t j, int64_t part, const float* centre,
              float* to, float* scratch) {
  Arena arena(scratch);
  const ForwardTiles x(s, arena);
  const PoolSums sums(s, to);
  std::fill_n(to, s.sums(), 0.0f);
  const auto keys = PoolProblem::part(s.span(n, s.keys), part, s.key_parts);
  for (int64_t t = 0; t < keys.length; t += kPoolBlock) {
    const int64_t rows = std::min(kPoolBlock, keys.length - t), first = keys.begin + t;
    const float* factors = nullptr;
    if (s.in.key_weight) {
      load_factors(s.in.key_weight, keys.b, first, j, rows, x.factors);
      factors = x.factors;
    }
    load_tile(s.in.k, keys.b, first, j, rows, s.dm, factors, x.k, s.ldm());
    load_tile(s.in.v, keys.b, first, j, rows, s.dv, nullptr, x.v, s.ldv());
    for (int64_t i = 0; centre != nullptr && i < rows; ++i) {
      add_row(centre, -1, s.ldv(), x.v + i * s.ldv());
    }
    product(s.dm, s.dv, rows, {x.k, 1, s.ldm()}, x.v, s.ldv(), sums.s, s.ldv(), Init::kAdd);
    if (s.needs_sums()) add_rows(x.k, s.ldm(), rows, s.ldm(), sums.z);
    if (s.needs_mean()) add_rows(x.v, s.ldv(), rows, s.ldv(), sums.u);
  }
}

// The sums of all parts, into those of the first.
void reduce_task(const PoolProblem& s, float* first, int64_t parts, float* transposed) {
  for (int64_t i = 1; i < parts; ++i) add_row(first + i * s.sums(), 1, s.sums(), first);
  if (transposed == nullptr) return;
  std::fill_n(transposed, s.transposed(), 0.0f);
  transpose(s.dm, s.dv, first, s.ldv(), transposed, s.ldm());
}

void read_task(const PoolProblem& s, int64_t n, int64_t h, int64_t part, const float* centre,
               float* from, float* scratch) {
  Arena arena(scratch);
  const ForwardTiles x(s, arena);
  const PoolSums sums(s, from);
  const int64_t keys = s.span(n, s.keys).length;
  const auto queries = PoolProblem::part(s.span(n, s.queries), part, s.query_parts);
  const PoolFactors constant(s, keys, 0);
  for (int64_t t = 0; t < queries.length; t += kPoolBlock) {
    const int64_t rows = std::min(kPoolBlock, queries.length - t), first = queries.begin + t;
    int64_t ldq = s.ldm(), ldo = s.ldv();
    const float* q = rows_in_place(s.in.q, queries.b, first, h, s.dm, &ldq);
    float* const out = rows_in_place(s.in.out, queries.b, first, h, s.dv, &ldo);
    float* const tile = out == nullptr ? x.o : out;
    if (q == nullptr) {
      load_tile(s.in.q, queries.b, first, h, rows, s.dm, nullptr, x.q, ldq);
      q = x.q;
    }
    load_factors(s.in.row_scale, queries.b, first, h, rows, x.factors);
    product(rows, s.dv, s.dm, {q, ldq, 1}, sums.s, s.ldv(), tile, ldo, Init::kZero);
    for (int64_t i = 0; i < rows; ++i) {
      float* o = tile + i * ldo;
      PoolFactors by = constant;
      if (s.needs_sums()) by = PoolFactors(s, keys, row_dot(q + i * ldq, sums.z, s.ldm()));
      if (keys == 0) {
        std::fill_n(o, s.ldv(), 0.0f);
        continue;
      }
      const double scale = x.factors[i];
      combine_row(static_cast<float>(scale * by.read), static_cast<float>(scale * by.mean),
                  s.needs_mean() ? sums.u : nullptr, static_cast<float>(scale * by.centre), centre,
                  s.ldv(), o);
    }
    if (out == nullptr) store_tile(x.o, s.ldv(), rows, s.dv, s.in.out, queries.b, first, h);
  }
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {

HWY_EXPORT(pool_scratch);
HWY_EXPORT(mean_task);
HWY_EXPORT(sum_task);
HWY_EXPORT(reduce_task);
HWY_EXPORT(read_task);

int64_t pool_forward_floats(const PoolProblem& s) { return HWY_DYNAMIC_DISPATCH(pool_scratch)(s); }

namespace {

// The means of the values, into memory.means.
void pool_means(const PoolProblem& s, const PoolMemory& memory, const PoolWorkers& workers,
                const heed_parallel* parallel) {
  const auto add = HWY_DYNAMIC_DISPATCH(mean_task);
  parallel_for(parallel, s.pairs() * s.key_parts, [&](int64_t i, int32_t worker) {
    const int64_t pair = i / s.key_parts, part = i % s.key_parts;
    add(s, pair / s.kv_heads, pair % s.kv_heads, part, memory.keys(pair, part), workers.of(worker));
  });
  const int64_t u = s.sums() - s.ldv();  // where a part's sum of values lies
  for (int64_t pair = 0; pair < s.pairs(); ++pair) {
    const int64_t keys = s.span(pair / s.kv_heads, s.keys).length;
    for (int64_t e = 0; e < s.ldv(); ++e) {
      double sum = 0;
      for (int64_t i = 0; i < s.key_parts; ++i) sum += memory.keys(pair, i)[u + e];
      memory.mean(pair)[e] = keys == 0 ? 0 : static_cast<float>(sum / static_cast<double>(keys));
    }
  }
}

}  // namespace

void pool_sums(const PoolProblem& s, const PoolMemory& memory, bool transpose, bool centre,
               const PoolWorkers& workers, const heed_parallel* parallel) {
  const auto sum = HWY_DYNAMIC_DISPATCH(sum_task);
  parallel_for(parallel, s.pairs() * s.key_parts, [&](int64_t i, int32_t worker) {
    const int64_t pair = i / s.key_parts, part = i % s.key_parts;
    sum(s, pair / s.kv_heads, pair % s.kv_heads, part, centre ? memory.mean(pair) : nullptr,
        memory.keys(pair, part), workers.of(worker));
  });
  if (s.key_parts == 1 && !transpose) return;
  pool_reduce(s, memory.key_sums, s.key_parts, transpose ? memory.key_transposed : nullptr,
              parallel);
}

void pool_reduce(const PoolProblem& s, float* sums, int64_t parts, float* transposed,
                 const heed_parallel* parallel) {
  const auto reduce = HWY_DYNAMIC_DISPATCH(reduce_task);
  parallel_for(parallel, s.pairs(), [&](int64_t pair, int32_t /*worker*/) {
    reduce(s, sums + pair * parts * s.sums(), parts,
           transposed == nullptr ? nullptr : transposed + pair * s.transposed());
  });
}

void pool_forward(const PoolProblem& s, const PoolWorkers& workers, const heed_parallel* parallel) {
  if (!s.in.out) return;
  const PoolMemory memory(s, workers.scratch.all(workers.workspace));
  if (s.centred()) pool_means(s, memory, workers, parallel);
  pool_sums(s, memory, false, s.centred(), workers, parallel);
  const auto read = HWY_DYNAMIC_DISPATCH(read_task);
  parallel_for(parallel, s.sequences * s.heads * s.query_parts, [&](int64_t i, int32_t worker) {
    const int64_t n = i / s.query_parts / s.heads, h = i / s.query_parts % s.heads;
    const int64_t pair = n * s.kv_heads + h / s.group;
    read(s, n, h, i % s.query_parts, s.centred() ? memory.mean(pair) : nullptr, memory.keys(pair),
         workers.of(worker));
  });
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
