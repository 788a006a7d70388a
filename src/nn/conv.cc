// See conv.h.
#include "nn/conv.h"

#include <ATen/ATen.h>

namespace heed {

at::Tensor short_conv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t taps = weight.size(1), tokens = x.size(1) - (taps - 1);
  at::Tensor sum;
  for (int64_t i = 0; i < taps; ++i) {
    const at::Tensor term = x.slice(1, i, i + tokens).mul(weight.select(1, i));
    sum = sum.defined() ? sum.add(term) : term;
  }
  return bias.defined() ? sum.add(bias) : sum;
}

}  // namespace heed
