// Vectors to scores of the next token.
#pragma once

#include "model/embedding.h"

namespace heed {

class Head {
 public:
  // Without values; of a tied model it has no matrix of its own.
  Head(const ModelConfig& config, const at::TensorOptions& tensors) {
    if (!config.tied) own_.data = at::empty({config.vocab, config.hidden}, tensors);
  }

  // The embedding's table in a tied model.
  const Weight& weight(const Embedding& embedding) const {
    return own_.data.defined() ? own_ : embedding.table();
  }
  // Its own matrix; undefined in a tied model.
  Weight& own() { return own_; }
  // [..., C] -> [..., vocab].
  at::Tensor forward(const at::Tensor& x, const Embedding& embedding) const {
    return linear(x, weight(embedding));
  }
  void visit(const VisitParameter& visit) {
    if (own_.data.defined()) visit("lm_head.weight", own_.data);
  }

 private:
  Weight own_;
};

}  // namespace heed
