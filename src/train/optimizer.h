// AdamW (Loshchilov & Hutter, arXiv 1711.05101) on float32 master weights, for models that compute
// in float32 or bfloat16.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace heed::train {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;  // on tensors of two dimensions and more
  double clip = 1.0;          // largest norm of the gradient; 0: none
};

class AdamW {
 public:
  using Named = std::vector<std::pair<std::string, at::Tensor>>;

  // `parameters` are leaves that require gradients. A parameter in float32 is its own master
  // weight; for one in bfloat16 a float32 copy is kept, and the parameter is the copy rounded.
  AdamW(Named parameters, const AdamWOptions& options);

  // Adds the gradients of a backward pass, in float32, and clears them.
  void accumulate();
  // Clips, updates and clears what was accumulated, of `passes` passes (it takes their mean).
  // Returns the norm of the mean gradient before clipping; if that is not finite, nothing is
  // changed.
  double step(double lr, int64_t passes = 1);
  int64_t steps() const { return steps_; }

  // Float32 master weights by name, sharing memory with the optimiser.
  std::map<std::string, at::Tensor> weights() const;
  // Moments by name: "NAME.m", "NAME.v", on the parameters' device, sharing memory.
  std::map<std::string, at::Tensor> state() const;
  // Copies weights in; throws Error naming a tensor that is missing or does not fit.
  void load_weights(const std::map<std::string, at::Tensor>& weights);
  // Copies weights and moments in; throws Error naming a tensor that is missing or does not fit.
  void load(const std::map<std::string, at::Tensor>& weights,
            const std::map<std::string, at::Tensor>& state, int64_t steps);

 private:
  void publish();  // master weights to the rounded parameters

  std::vector<std::string> names_;
  std::vector<at::Tensor> parameters_, masters_, gradients_, m_, v_, counters_;
  std::vector<size_t> decayed_, plain_;
  AdamWOptions options_;
  int64_t steps_ = 0;
};

}  // namespace heed::train
