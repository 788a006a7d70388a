// See mlp_layer.h.
#include "mixer/common/mlp_layer.h"

#include <ATen/ATen.h>

namespace heed::mixer {

MlpLayer::MlpLayer(const MlpConfig& c) : Layer(Params::Order::kAsMade), activation_(c.activation) {
  const auto part = [&](Weight& weight, at::Tensor& bias, const std::string& name, int64_t out,
                        int64_t in) {
    params_.matrix(weight, name + ".weight", at::empty({out, in}, c.tensors));
    if (c.bias) params_.tensor(bias, name + ".bias", at::empty({out}, c.tensors));
  };
  if (c.gated) part(gate_, gate_bias_, "gate_proj", c.intermediate, c.hidden);
  part(up_, up_bias_, "up_proj", c.intermediate, c.hidden);
  part(down_, down_bias_, "down_proj", c.hidden, c.intermediate);
}

at::Tensor MlpLayer::inner(const at::Tensor& x) const {
  if (!gate_.defined()) return linear_activation(x, up_, up_bias_, activation_);
  return linear_gated(x, gate_, gate_bias_, up_, up_bias_, activation_);
}

at::Tensor MlpLayer::forward(const at::Tensor& x, Call& call) {
  return linear(inner(x), down_, down_bias_);
}

at::Tensor MlpLayer::add_to(const at::Tensor& residual, const at::Tensor& x, Call& call) {
  if (!call.layout || !call.layout->fused) return residual + forward(x, call);
  return linear_plus(inner(x), down_, down_bias_, residual);
}

Traits MlpLayer::traits() const {
  Traits traits;
  traits.state = StateGrowth::kFixed;
  traits.linear_time = true;
  traits.heads_independent = false;
  return traits;
}

}  // namespace heed::mixer
