// See init.h.
#include "nn/init.h"

#include <ATen/ATen.h>

#include <cmath>

namespace heed {

thread_local bool ShapesOnly::on_ = false;

at::TensorOptions init_options() {
  return at::TensorOptions().dtype(at::kFloat).device(ShapesOnly::on() ? at::kMeta : at::kCPU);
}

at::Tensor init_uniform(at::IntArrayRef shape, double bound) {
  return at::empty(shape, init_options()).uniform_(-bound, bound);
}

at::Tensor init_projection(int64_t out, int64_t in) {
  const double gain = std::pow(2.0, -2.5);
  return init_uniform({out, in}, gain * std::sqrt(6.0 / static_cast<double>(in + out)));
}

at::Tensor init_conv(int64_t width, int64_t taps) {
  return init_uniform({width, taps}, 1.0 / std::sqrt(static_cast<double>(taps)));
}

at::Tensor init_dt_bias(int64_t n) {
  const at::Tensor dt =
      at::exp(at::empty({n}, init_options()).uniform_(std::log(1e-3), std::log(1e-1)))
          .clamp_min(1e-4);
  return dt.add(at::log(at::expm1(dt.neg()).neg()));
}

}  // namespace heed
