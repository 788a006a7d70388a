// Checks of the engine's calls, its row in the table of backends, and its reference.
#include "kernel/pool/problem.h"

#include <cmath>
#include <vector>

#include "kernel/parallel.h"

namespace heed::kernel {

heed_status check_pool(const PoolCall& call, int32_t pass, CallDtypes dtypes, int32_t threads,
                       PoolProblem* problem, heed_message* message) {
  CallSizes sizes;
  const heed_status status = check_call(kPool, &call, pass, dtypes, &sizes, message);
  if (status != HEED_OK) return status;
  PoolProblem p;
  p.queries = sizes["T"], p.keys = sizes["S"], p.heads = sizes["H"], p.kv_heads = sizes["J"];
  p.dm = sizes["M"], p.dv = sizes["V"], p.sequences = sizes["N"];
  p.cu_seqlens = call.head.cu_seqlens;
  if (p.kv_heads < 1 || p.heads % p.kv_heads != 0) {
    return call_fail(kPool, HEED_INVALID_ARGUMENT, message,
                     "H = %lld query heads are no multiple of J = %lld heads of keys",
                     static_cast<long long>(p.heads), static_cast<long long>(p.kv_heads));
  }
  if (p.cu_seqlens != nullptr && p.keys != p.queries) {
    return call_fail(kPool, HEED_INVALID_ARGUMENT, message,
                     "a pack (cu_seqlens) needs as many keys as queries, not S = %lld, T = %lld",
                     static_cast<long long>(p.keys), static_cast<long long>(p.queries));
  }
  p.group = p.heads / p.kv_heads;
  p.options = call.options;
  const heed_view* views = call_views(kPool, static_cast<const void*>(&call));
  const heed_view* grads = call_grads(kPool, static_cast<const void*>(&call));
  for (size_t i = 0; i < std::size(kPoolTensors); ++i) {
    reinterpret_cast<Strided*>(&p.in)[i] = Strided(views[i]);
    reinterpret_cast<Strided*>(&p.grad)[i] = Strided(grads[i]);
  }
  p.head_run = std::clamp<int64_t>(kPoolSums / p.sums(), 1, std::max<int64_t>(1, p.kv_heads));
  // Enough tasks for the threads, and no part without a block.
  const int64_t runs = std::max<int64_t>(1, p.sequences * p.head_runs());
  const int64_t wanted = (2 * threads + runs - 1) / runs;
  const auto parts = [&](int64_t tokens) {
    return std::clamp<int64_t>((tokens + kPoolBlock - 1) / kPoolBlock, 1,
                               std::max<int64_t>(1, wanted));
  };
  p.key_parts = parts(p.keys), p.query_parts = parts(p.queries);
  *problem = p;
  return HEED_OK;
}

namespace {

Scratch scratch_of(const PoolProblem& s, int32_t pass) {
  if (pass == HEED_BACKWARD) return {PoolMemory::backward_floats(s), pool_backward_floats(s)};
  return {PoolMemory::forward_floats(s), pool_forward_floats(s)};
}

const char* refuses(const void* /*call*/, int32_t pass) {
  return pass == HEED_STEP ? "a pooled read has no state; its causal form is scan" : nullptr;
}

int64_t workspace(const void* call, int32_t pass, int32_t threads) {
  PoolProblem s;
  const heed_status status = check_pool(*static_cast<const PoolCall*>(call), pass,
                                        CallDtypes::kKernel, threads, &s, nullptr);
  return status == HEED_OK ? scratch_of(s, pass).bytes(threads) : 0;
}

heed_status run(const void* call, int32_t pass, void* memory, void* /*stream*/,
                const heed_parallel* parallel, heed_message* message) {
  PoolProblem s;
  const heed_status status =
      check_pool(*static_cast<const PoolCall*>(call), pass, CallDtypes::kKernel,
                 parallel_threads(parallel), &s, message);
  if (status != HEED_OK) return status;
  (pass == HEED_BACKWARD ? pool_backward : pool_forward)(s, {scratch_of(s, pass), memory},
                                                         parallel);
  return HEED_OK;
}

}  // namespace

const heed_backend kPoolBackend = {
    sizeof(heed_backend), "pool", "cpu", HEED_CPU, 0, refuses, workspace, nullptr, run};

heed_status pool_reference(const PoolCall& call, heed_message* message) {
  PoolProblem s;
  const heed_status status = check_pool(call, HEED_FORWARD, CallDtypes::kReference, 1, &s, message);
  if (status != HEED_OK) return status;
  const auto at = [](const Strided& x, int64_t b, int64_t t, int64_t h, int64_t i) {
    return load_element(x.data, x.dtype, b * x.b + t * x.t + h * x.h + i);
  };
  const PoolOptions& o = s.options;
  const auto one_row = [&](const PoolProblem::Span& keys, int64_t b, int64_t i, int64_t h) {
    const auto n = static_cast<double>(keys.length);
    const double c = o.by_count ? o.scale / n : o.scale;
    const int64_t j_head = h / s.group;
    std::vector<double> read(static_cast<size_t>(s.dv)), mean(static_cast<size_t>(s.dv));
    double sum = 0;
    for (int64_t j = keys.begin; j < keys.begin + keys.length; ++j) {
      double weight = s.in.key_weight ? c * at(s.in.key_weight, b, j, j_head, 0) : c, dot = 0;
      for (int64_t m = 0; m < s.dm; ++m)
        dot += at(s.in.q, b, i, h, m) * at(s.in.k, b, j, j_head, m);
      weight *= dot;
      sum += weight;
      for (int64_t e = 0; e < s.dv; ++e) {
        const double value = at(s.in.v, b, j, j_head, e);
        read[static_cast<size_t>(e)] += weight * value;
        mean[static_cast<size_t>(e)] += value / n;
      }
    }
    const double divisor = o.clamp ? std::max(sum, o.eps) : sum + o.eps;
    const double a = s.divides() ? o.a0 + o.a1 / divisor : o.a0, m = o.b0 + o.b1 * sum;
    const double r = s.in.row_scale ? at(s.in.row_scale, b, i, h, 0) : 1;
    for (int64_t e = 0; e < s.dv; ++e) {
      const auto at_e = static_cast<size_t>(e);
      const double y = keys.length == 0 ? 0 : r * (a * read[at_e] + m * mean[at_e]);
      store_element(s.in.out.data, s.in.out.dtype,
                    b * s.in.out.b + i * s.in.out.t + h * s.in.out.h + e, y);
    }
  };
  for (int64_t n = 0; n < s.sequences; ++n) {
    const auto queries = s.span(n, s.queries), keys = s.span(n, s.keys);
    for (int64_t i = queries.begin; i < queries.begin + queries.length; ++i) {
      for (int64_t h = 0; h < s.heads; ++h) one_row(keys, queries.b, i, h);
    }
  }
  return HEED_OK;
}

}  // namespace heed::kernel
