#include "op/toeplitz.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "io/error.h"
#include "op/describe.h"

namespace heed::op {
namespace {

// The next length that has no prime factor above 5: such transforms are fast.
int64_t fast_length(int64_t n) {
  for (int64_t length = std::max<int64_t>(n, 1);; ++length) {
    int64_t rest = length;
    for (const int64_t p : {2, 3, 5}) {
      while (rest % p == 0) rest /= p;
    }
    if (rest == 1 && length % 2 == 0) return length;
  }
}

}  // namespace

at::Tensor toeplitz(const at::Tensor& c, const at::Tensor& x, int64_t queries) {
  if (x.dim() < 3 || c.dim() != 2 || c.size(0) != x.size(1) ||
      c.size(1) != queries + x.size(2) - 1) {
    throw UsageError("toeplitz: c has shape {} and x {}, expected [H,T+S-1] and [B,H,S,...]",
                     sizes_of(c), sizes_of(x));
  }
  const int64_t keys = x.size(2), length = fast_length(queries + keys - 1);
  // y_i = sum_j w_{i-j} x_j with w_l = c[T - 1 - l]; negative lags at the end of the circle.
  const at::Tensor lags = c.flip(1);  // entry S - 1 + l
  const at::Tensor past = lags.slice(1, keys - 1), future = lags.slice(1, 0, keys - 1);
  const at::Tensor gap = at::zeros({c.size(0), length - c.size(1)}, c.options());
  const at::Tensor circle = at::fft_rfft(at::cat({past, gap, future}, 1), length, 1);
  const at::Tensor columns = x.flatten(3).transpose(2, 3);  // the transforms run over memory rows
  const at::Tensor product =
      at::fft_rfft(columns, length, -1).mul(circle.unsqueeze(1).unsqueeze(0));
  const at::Tensor y = at::fft_irfft(product, length, -1).slice(-1, 0, queries).transpose(2, 3);
  std::vector<int64_t> shape = x.sizes().vec();
  shape[2] = queries;
  return y.reshape(shape);
}

}  // namespace heed::op
