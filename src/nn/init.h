// First values of a layer's parameters, drawn from PyTorch's default generator.
#pragma once

#include <ATen/core/Tensor.h>

namespace heed {

// While one lives, the parameters of layers that this thread makes take no memory (device meta):
// for their names and shapes alone.
class ShapesOnly {
 public:
  ShapesOnly() : before_(on_) { on_ = true; }
  ~ShapesOnly() { on_ = before_; }
  ShapesOnly(const ShapesOnly&) = delete;
  ShapesOnly& operator=(const ShapesOnly&) = delete;
  static bool on() { return on_; }

 private:
  static thread_local bool on_;
  bool before_;
};

// What a layer's constructor makes parameters with: float32 on the CPU, or without memory where
// ShapesOnly asks for that.
at::TensorOptions init_options();
// Uniform within +-bound: float32 of the shape.
at::Tensor init_uniform(at::IntArrayRef shape, double bound);
// Xavier-uniform [out,in] with gain 2^-2.5.
at::Tensor init_projection(int64_t out, int64_t in);
// Uniform within 1/sqrt(taps): [width, taps].
at::Tensor init_conv(int64_t width, int64_t taps);
// Inverse softplus of steps drawn log-uniformly from [0.001, 0.1]: [n].
at::Tensor init_dt_bias(int64_t n);

}  // namespace heed
