// See linear.h. A task takes some rows of the matrix; two of them at once meet up to eight rows of
// x, whose sums stay in registers.
#include "kernel/linear/linear.h"

#include <algorithm>

#include "kernel/parallel.h"
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/linear/linear.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef HEED_KERNEL_LINEAR_PROBLEM_H_
#define HEED_KERNEL_LINEAR_PROBLEM_H_
namespace heed::kernel {
namespace {

struct FewRows {
  const float *x, *w, *bias;
  int64_t rows, out, in;
  float* y;
};

constexpr int64_t kTaskRows = 32;  // of the matrix

}  // namespace
}  // namespace heed::kernel
#endif

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Rows [m, m + M) of x with rows [n, n + N) of w.
template <int M, int N>
void tile(const FewRows& p, int64_t m, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* x = p.x + m * p.in;
  const float* w = p.w + n * p.in;
  hn::Vec<decltype(d)> sums[M * N];
  for (auto& sum : sums) sum = hn::Zero(d);
  int64_t k = 0;
  for (; k + lanes <= p.in; k += lanes) {
    for (int j = 0; j < N; ++j) {
      const auto weight = hn::LoadU(d, w + j * p.in + k);
      for (int i = 0; i < M; ++i) {
        sums[j * M + i] = hn::MulAdd(hn::LoadU(d, x + i * p.in + k), weight, sums[j * M + i]);
      }
    }
  }
  for (int j = 0; j < N; ++j) {
    for (int i = 0; i < M; ++i) {
      float sum = hn::GetLane(hn::SumOfLanes(d, sums[j * M + i]));
      for (int64_t c = k; c < p.in; ++c) sum += x[i * p.in + c] * w[j * p.in + c];
      p.y[(m + i) * p.out + n + j] = sum + (p.bias ? p.bias[n + j] : 0.0f);
    }
  }
}

template <int M>
void pairs(const FewRows& p, int64_t m, int64_t begin, int64_t end) {
  constexpr int kPair = HWY_TARGET <= HWY_AVX3 || M <= 4 ? 2 : 1;  // as registers allow
  int64_t n = begin;
  for (; n + kPair <= end; n += kPair) tile<M, kPair>(p, m, n);
  for (; n < end; ++n) tile<M, 1>(p, m, n);
}

void task(const FewRows& p, int64_t begin, int64_t end) {
  for (int64_t m = 0; m < p.rows;) {
    const int64_t left = p.rows - m;
    if (left >= 8) {
      pairs<8>(p, m, begin, end);
      m += 8;
    } else if (left >= 4) {
      pairs<4>(p, m, begin, end);
      m += 4;
    } else if (left >= 2) {
      pairs<2>(p, m, begin, end);
      m += 2;
    } else {
      pairs<1>(p, m, begin, end);
      m += 1;
    }
  }
}

}  // namespace
}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {
namespace {
HWY_EXPORT(task);
}  // namespace

void linear_few_rows(const float* x, int64_t rows, const float* w, const float* bias, int64_t out,
                     int64_t in, float* y, const heed_parallel* parallel) {
  const FewRows p{x, w, bias, rows, out, in, y};
  const int64_t tasks = (out + kTaskRows - 1) / kTaskRows;
  parallel_for(parallel, tasks, [&](int64_t i, int32_t) {
    HWY_DYNAMIC_DISPATCH(task)(p, i * kTaskRows, std::min(out, (i + 1) * kTaskRows));
  });
}

}  // namespace heed::kernel
#endif
