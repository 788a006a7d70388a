// Token ids to vectors.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "io/model_config.h"
#include "mixer/layer.h"
#include "nn/weight.h"

namespace heed {

// Given the name and the tensor of every parameter, in file order; may put another of the same
// shape in its place.
using VisitParameter = std::function<void(const std::string&, at::Tensor&)>;

class Embedding {
 public:
  // Without values.
  Embedding(const ModelConfig& config, const at::TensorOptions& tensors);

  // Throws UsageError for ids that are not int64 [B, T], and for one outside the vocabulary.
  void check(const at::Tensor& ids) const;
  // Such ids -> [B, T, C], with the vector of each token's position where the model has a table of
  // them.
  at::Tensor forward(const at::Tensor& ids, const mixer::Layout& layout) const;

  const Weight& table() const { return table_; }
  Weight& table() { return table_; }
  void visit(const VisitParameter& visit);

 private:
  Weight table_;          // [vocab, C]
  at::Tensor positions_;  // [max_position, C] (GPT-2); undefined: the trunk rotates
};

}  // namespace heed
