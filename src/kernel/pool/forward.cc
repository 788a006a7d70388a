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
        k(arena.take(kPoolBlock * s.transposed_row())),
        v(arena.take(kPoolBlock * s.row())),
        o(arena.take(kPoolBlock * s.ldv())),
        factors(arena.take(kPoolBlock)) {}
};

int64_t pool_scratch(const PoolProblem& s) {
  Arena arena(nullptr);
  const ForwardTiles tiles(s, arena);
  return arena.used();
}

// visit(first token, rows, head) for the tiles of `heads` heads from `first` on, those of the same
// tokens one after the other, with the rows of the tile after it to be asked for: ask(token, rows,
// head).
template <class Ask, class Visit>
HWY_INLINE void for_tiles(const PoolProblem::Span& span, int64_t first, int64_t last, Ask&& ask,
                          Visit&& visit) {
  for (int64_t t = 0; t < span.length; t += kPoolBlock) {
    for (int64_t h = first; h < last; ++h) {
      const bool same = h + 1 < last;
      const int64_t after = same ? t : t + kPoolBlock;
      if (after < span.length) {
        ask(span.begin + after, std::min(kPoolBlock, span.length - after), same ? h + 1 : first);
      }
      visit(span.begin + t, std::min(kPoolBlock, span.length - t), h);
    }
  }
}

// The sums of the values of one part, as sums.u.
void mean_task(const PoolProblem& s, const PoolMemory& memory, const PoolTask& task,
               float* scratch) {
  Arena arena(scratch);
  const ForwardTiles x(s, arena);
  const auto sums = [&](int64_t j) {
    return PoolSums(s, memory.keys(task.n * s.kv_heads + j, task.part));
  };
  for (int64_t j = task.first; j < task.last; ++j) std::fill_n(sums(j).u, s.ldv(), 0.0f);
  const auto keys = PoolProblem::part(s.span(task.n, s.keys), task.part, s.key_parts);
  for_tiles(
      keys, task.first, task.last, [](int64_t, int64_t, int64_t) {},
      [&](int64_t t, int64_t rows, int64_t j) HWY_ATTR {
        load_tile(s.in.v, keys.b, t, j, rows, s.dv, nullptr, x.v, s.ldv());
        add_rows(x.v, s.ldv(), rows, s.ldv(), sums(j).u);
      });
}

// The sums of one part of the keys, of values less their mean if `centre`.
void sum_task(const PoolProblem& s, const PoolMemory& memory, const PoolTask& task, bool centre,
              float* scratch) {
  Arena arena(scratch);
  const ForwardTiles x(s, arena);
  const auto at = [&](int64_t j) { return memory.keys(task.n * s.kv_heads + j, task.part); };
  for (int64_t j = task.first; j < task.last; ++j) std::fill_n(at(j), s.sums(), 0.0f);
  Fetch next;
  const auto keys = PoolProblem::part(s.span(task.n, s.keys), task.part, s.key_parts);
  const auto ask = [&](int64_t t, int64_t rows, int64_t j) {
    next.clear();
    fetch_tile(s.in.k, keys.b, t, j, rows, s.dm, next);
    fetch_tile(s.in.v, keys.b, t, j, rows, s.dv, next);
  };
  const int64_t ldk = s.transposed_row(), ldv = s.row();
  for_tiles(keys, task.first, task.last, ask, [&](int64_t t, int64_t rows, int64_t j) HWY_ATTR {
    const PoolSums sums(s, at(j));
    const float* factors = nullptr;
    if (s.in.key_weight) {
      load_factors(s.in.key_weight, keys.b, t, j, rows, x.factors);
      factors = x.factors;
    }
    load_tile(s.in.k, keys.b, t, j, rows, s.dm, factors, x.k, ldk);
    load_tile(s.in.v, keys.b, t, j, rows, s.dv, nullptr, x.v, ldv);
    const float* mean = centre ? memory.mean(task.n * s.kv_heads + j) : nullptr;
    for (int64_t i = 0; centre && i < rows; ++i) add_row(mean, -1, s.ldv(), x.v + i * ldv);
    next.spread(s.dm * rows * (s.ldv() / kLanes));
    product(s.dm, s.dv, rows, {x.k, 1, ldk}, x.v, ldv, sums.s, s.row(), Init::kAdd, Shape::kFull,
            &next);
    if (s.needs_sums()) add_rows(x.k, ldk, rows, s.ldm(), sums.z);
    if (s.needs_mean()) add_rows(x.v, ldv, rows, s.ldv(), sums.u);
  });
}

// The sums of all parts, into those of the first.
void reduce_task(const PoolProblem& s, float* first, int64_t parts, float* transposed) {
  for (int64_t i = 1; i < parts; ++i) add_row(first + i * s.sums(), 1, s.sums(), first);
  if (transposed == nullptr) return;
  std::fill_n(transposed, s.transposed(), 0.0f);
  transpose(s.dm, s.dv, first, s.row(), transposed, s.transposed_row());
}

// The plain reads of one tile, scaled and with the part of the mean values.
void finish_tile(const PoolProblem& s, int64_t keys, const PoolSums& sums, const float* centre,
                 const float* q, int64_t ldq, const float* factors, int64_t rows, float* tile,
                 int64_t ldo) {
  const PoolFactors constant(s, keys, 0);
  for (int64_t i = 0; i < rows; ++i) {
    float* o = tile + i * ldo;
    if (keys == 0) {
      std::fill_n(o, s.ldv(), 0.0f);
      continue;
    }
    PoolFactors by = constant;
    if (s.needs_sums()) by = PoolFactors(s, keys, row_dot(q + i * ldq, sums.z, s.ldm()));
    const double scale = factors[i];
    combine_row(static_cast<float>(scale * by.read), static_cast<float>(scale * by.mean),
                s.needs_mean() ? sums.u : nullptr, static_cast<float>(scale * by.centre), centre,
                s.ldv(), o);
  }
}

void read_task(const PoolProblem& s, const PoolMemory& memory, const PoolTask& task,
               float* scratch) {
  Arena arena(scratch);
  const ForwardTiles x(s, arena);
  const int64_t keys = s.span(task.n, s.keys).length;
  const auto queries = PoolProblem::part(s.span(task.n, s.queries), task.part, s.query_parts);
  Fetch next;
  const auto ask = [&](int64_t t, int64_t rows, int64_t h) {
    next.clear();
    fetch_tile(s.in.q, queries.b, t, h, rows, s.dm, next);
    fetch_tile(s.in.out, queries.b, t, h, rows, s.dv, next, true);
  };
  const auto read = [&](int64_t t, int64_t rows, int64_t h) HWY_ATTR {
    const int64_t pair = task.n * s.kv_heads + h / s.group;
    const PoolSums sums(s, memory.keys(pair));
    int64_t ldq = s.ldm(), ldo = s.ldv();
    const float* q = rows_in_place(s.in.q, queries.b, t, h, s.dm, &ldq);
    float* const out = rows_in_place(s.in.out, queries.b, t, h, s.dv, &ldo);
    float* const tile = out == nullptr ? x.o : out;
    if (q == nullptr) {
      load_tile(s.in.q, queries.b, t, h, rows, s.dm, nullptr, x.q, ldq);
      q = x.q;
    }
    load_factors(s.in.row_scale, queries.b, t, h, rows, x.factors);
    next.spread(rows * s.dm * (s.ldv() / kLanes));
    product(rows, s.dv, s.dm, {q, ldq, 1}, sums.s, s.row(), tile, ldo, Init::kZero, Shape::kFull,
            &next);
    finish_tile(s, keys, sums, s.centred() ? memory.mean(pair) : nullptr, q, ldq, x.factors, rows,
                tile, ldo);
    if (out == nullptr) store_tile(x.o, s.ldv(), rows, s.dv, s.in.out, queries.b, t, h);
  };
  for_tiles(queries, task.first * s.group, task.last * s.group, ask, read);
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
  parallel_for(parallel, PoolTask::count(s, s.key_parts), [&](int64_t i, int32_t worker) {
    add(s, memory, PoolTask(s, i, s.key_parts), workers.of(worker));
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
  parallel_for(parallel, PoolTask::count(s, s.key_parts), [&](int64_t i, int32_t worker) {
    sum(s, memory, PoolTask(s, i, s.key_parts), centre, workers.of(worker));
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
  parallel_for(parallel, PoolTask::count(s, s.query_parts), [&](int64_t i, int32_t worker) {
    read(s, memory, PoolTask(s, i, s.query_parts), workers.of(worker));
  });
}

}  // namespace heed::kernel
#endif  // HWY_ONCE
