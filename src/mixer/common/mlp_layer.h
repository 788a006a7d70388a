// The channel layer of most transformers: down(act(gate x) * up x), or down(act(up x)).
#pragma once

#include "mixer/layer.h"

namespace heed::mixer {

struct MlpConfig {
  int64_t hidden = 0, intermediate = 0;
  std::string activation = "silu";  // silu | gelu | gelu_tanh | relu
  bool gated = true;                // down(act(gate x) * up x) (arXiv 2002.05202)
  bool bias = false;
  at::TensorOptions tensors = at::kFloat;  // of parameters, which whoever makes the layer fills
};

class MlpLayer final : public Layer {
 public:
  explicit MlpLayer(const MlpConfig& config);
  at::Tensor forward(const at::Tensor& x, Call& call) override;
  // Products of the CPU's fused path write into one another where no gradient is asked for.
  at::Tensor add_to(const at::Tensor& residual, const at::Tensor& x, Call& call) override;
  Traits traits() const override;
  bool takes(Pattern pattern) const override { return true; }

 private:
  at::Tensor inner(const at::Tensor& x) const;

  std::string activation_;
  Weight gate_, up_, down_;  // gate: undefined where not gated
  at::Tensor gate_bias_, up_bias_, down_bias_;
};

}  // namespace heed::mixer
