// The operator short_conv: the engine's table, its naive form, and functions over them.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "op/mix.h"

namespace heed::op {

// A sum over taps of shifted inputs.
void naive::short_conv(ShortConvTensors& x, const ShortConvOptions& options) {
  using at::Tensor;
  const bool wide = x.x.scalar_type() == at::kDouble || x.weight.scalar_type() == at::kDouble;
  const at::ScalarType type = wide ? at::kDouble : at::kFloat;
  const Tensor values = x.x.to(type), weight = x.weight.to(type);
  const int64_t tokens = values.size(1), channels = values.size(2), taps = weight.size(-1);
  Tensor before = x.initial_state.defined()
                      ? x.initial_state.to(type)
                      : at::zeros({values.size(0), taps - 1, channels}, values.options());
  const Tensor padded = at::constant_pad_nd(at::cat({before, values}, 1), {0, 0, 0, options.ahead});
  Tensor sum = at::zeros_like(values);
  for (int64_t i = 0; i < taps; ++i) {
    const Tensor shifted = padded.slice(1, i + options.ahead, i + options.ahead + tokens);
    const Tensor tap = weight.select(-1, i);  // [C] or [B,T,H]
    sum = sum +
          shifted * (weight.dim() == 2 ? tap : tap.repeat_interleave(channels / weight.size(2), 2));
  }
  if (x.bias.defined()) sum = sum + x.bias.to(type);
  x.out = (options.silu != 0 ? at::silu(sum) : sum).to(x.x.scalar_type());
  x.final_state = padded.slice(1, tokens, tokens + taps - 1);
}

Engine& short_conv_engine() {
  static Engine engine(kernel::kShortConv, naive_of<kernel::ShortConvCall, naive::short_conv>,
                       kernel::short_conv_backends());
  return engine;
}

void register_short_conv(torch::Library& library) { short_conv_engine().define(library); }

ShortConvTensors short_conv(ShortConvTensors x, const ShortConvOptions& options,
                            const at::Tensor& cu_seqlens) {
  short_conv_engine().forward(tensor_list(x), &options, cu_seqlens);
  return x;
}
ShortConvTensors short_conv_naive(ShortConvTensors x, const ShortConvOptions& options,
                                  const at::Tensor& cu_seqlens) {
  short_conv_engine().run_naive(tensor_list(x), &options, cu_seqlens);
  return x;
}
at::Tensor short_conv_step(ShortConvTensors x, const ShortConvOptions& options) {
  short_conv_engine().step(tensor_list(x), &options);
  return x.out;
}

}  // namespace heed::op
