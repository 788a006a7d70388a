// See embedding.h.
#include "model/embedding.h"

#include <ATen/ATen.h>

#include "io/error.h"

namespace heed {
Embedding::Embedding(const ModelConfig& config, const at::TensorOptions& tensors)
    : table_{at::empty({config.vocab, config.hidden}, tensors)} {
  if (config.learned_positions) {
    positions_ = at::empty({config.max_position, config.hidden}, tensors);
  }
}

void Embedding::check(const at::Tensor& ids) const {
  const int64_t vocab = table_.data.size(0);
  if (ids.scalar_type() != at::kLong || ids.dim() != 2) {
    throw UsageError("token ids must be int64 [batch, length]");
  }
  if (ids.numel() == 0) return;
  const auto [low, high] = at::aminmax(ids);
  const int64_t bad = low.item<int64_t>() < 0 ? low.item<int64_t>() : high.item<int64_t>();
  if (bad < 0 || bad >= vocab) {
    throw UsageError("token id {} is outside the vocabulary (0 to {})", bad, vocab - 1);
  }
}

at::Tensor Embedding::forward(const at::Tensor& ids, const mixer::Layout& layout) const {
  const at::Device device = table_.data.device();
  const at::Tensor x = rows_of(table_, ids);
  if (!positions_.defined()) return x;
  const at::Tensor rows = at::tensor(layout.positions, at::kLong).to(device);
  return x + at::embedding(positions_, rows).view(x.sizes());
}

void Embedding::visit(const VisitParameter& visit) {
  visit("model.embed_tokens.weight", table_.data);
  if (positions_.defined()) visit("model.embed_positions.weight", positions_);
}

}  // namespace heed
