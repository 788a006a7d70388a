// Products of a few rows with a large matrix, as a step of several sequences has them: what a
// general product packs and tiles, this reads once, row by row, and holds against all rows of x.
#pragma once

#include <cstdint>

#include "heed/view.h"

namespace heed::kernel {

inline constexpr int64_t kFewRows = 16;

// y[m, n] = sum_k x[m, k] w[n, k] + bias[n], in float32: x [rows, in], w [out, in], y [rows, out],
// bias [out] or null, all contiguous; 1 <= rows <= kFewRows. A row's sums do not depend on how many
// rows there are, nor on the threads.
void linear_few_rows(const float* x, int64_t rows, const float* w, const float* bias, int64_t out,
                     int64_t in, float* y, const heed_parallel* parallel);

}  // namespace heed::kernel
