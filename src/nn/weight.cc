// See weight.h. oneDNN's fused linear is PyTorch's operator mkldnn::_linear_pointwise.
#include "nn/weight.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "io/error.h"
#include "kernel/linear/linear.h"
#include "nn/block_weight.h"
#include "nn/few_rows.h"
#include "op/parallel.h"

namespace heed {
namespace {

using Scalars = c10::List<std::optional<at::Scalar>>;

at::Tensor onednn_unary(const at::Tensor& x, const Weight& w, const at::Tensor& bias,
                        std::string_view attribute, std::optional<std::string_view> algorithm) {
  using Signature =
      at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                 c10::string_view, Scalars, std::optional<c10::string_view>);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                             .typed<Signature>();
  return op.call(x, w.data, bias.defined() ? std::optional(bias) : std::nullopt, attribute,
                 Scalars(), algorithm);
}

at::Tensor onednn_binary(const at::Tensor& x, const Weight& w, const at::Tensor& bias,
                         const at::Tensor& other, c10::string_view attribute) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const std::optional<at::Tensor>&, c10::string_view);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mkldnn::_linear_pointwise", "binary")
                             .typed<Signature>();
  return op.call(x, other, w.data, bias.defined() ? std::optional(bias) : std::nullopt, attribute);
}

// Whether oneDNN may take the product: no gradient, on the CPU, a type it has kernels for.
bool onednn(const at::Tensor& x, const Weight& w) {
  if (!x.is_cpu() || x.numel() == 0 || w.blocks) return false;
  if (at::GradMode::is_enabled() && (x.requires_grad() || w.data.requires_grad())) return false;
  return x.scalar_type() == w.data.scalar_type() &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) &&
         w.data.is_contiguous();
}

// Whether the rows of x are those of a step of several sequences (few_rows.h).
bool few_rows(const at::Tensor& x, const Weight& w, const at::Tensor& bias) {
  if (!FewRowsScope::on() || x.scalar_type() != at::kFloat || !onednn(x, w)) return false;
  const int64_t rows = x.numel() / x.size(-1);
  return rows >= 2 && rows <= kernel::kFewRows &&
         (!bias.defined() || (bias.scalar_type() == at::kFloat && bias.is_contiguous()));
}

at::Tensor linear_few_rows(const at::Tensor& x_in, const Weight& w, const at::Tensor& bias) {
  const at::Tensor x = x_in.contiguous();
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = w.data.size(0);
  at::Tensor y = at::empty(sizes, x.options());
  const heed_parallel parallel = op::torch_parallel();
  kernel::linear_few_rows(x.const_data_ptr<float>(), x.numel() / x.size(-1),
                          w.data.const_data_ptr<float>(),
                          bias.defined() ? bias.const_data_ptr<float>() : nullptr, w.data.size(0),
                          w.data.size(1), y.mutable_data_ptr<float>(), &parallel);
  return y;
}

}  // namespace

thread_local bool FewRowsScope::active = false;

at::Tensor linear(const at::Tensor& x, const Weight& weight, const at::Tensor& bias) {
  if (weight.blocks) return linear_blocks(x, {weight.blocks.get()}, {bias}, false, {});
  if (few_rows(x, weight, bias)) return linear_few_rows(x, weight, bias);
  if (onednn(x, weight)) return onednn_unary(x, weight, bias, "none", std::nullopt);
  return at::linear(x, weight.data, bias.defined() ? std::optional(bias) : std::nullopt);
}

at::Tensor linear_activation(const at::Tensor& x, const Weight& weight, const at::Tensor& bias,
                             const std::string& activation) {
  if (!onednn(x, weight) || few_rows(x, weight, bias)) {
    return activate(linear(x, weight, bias), activation);
  }
  if (activation == "silu") return onednn_unary(x, weight, bias, "swish", std::nullopt);
  if (activation == "relu") return onednn_unary(x, weight, bias, "relu", std::nullopt);
  return onednn_unary(x, weight, bias, "gelu", activation == "gelu_tanh" ? "tanh" : "none");
}

at::Tensor linear_times(const at::Tensor& x, const Weight& weight, const at::Tensor& bias,
                        const at::Tensor& other) {
  if (onednn(x, weight) && !few_rows(x, weight, bias)) {
    return onednn_binary(x, weight, bias, other, "mul");
  }
  return linear(x, weight, bias) * other;
}

at::Tensor linear_plus(const at::Tensor& x, const Weight& weight, const at::Tensor& bias,
                       const at::Tensor& other) {
  if (onednn(x, weight) && !few_rows(x, weight, bias)) {
    return onednn_binary(x, weight, bias, other, "add");
  }
  if (weight.blocks) return linear_blocks(x, {weight.blocks.get()}, {bias}, false, other);
  return linear(x, weight, bias) + other;
}

at::Tensor linear_joint(const at::Tensor& x, const std::vector<const Weight*>& weights,
                        const std::vector<at::Tensor>& biases) {
  std::vector<const BlockWeight*> blocks;
  for (const Weight* w : weights) {
    if (w->blocks) blocks.push_back(w->blocks.get());
  }
  if (blocks.size() == weights.size()) return linear_blocks(x, blocks, biases, false, {});
  std::vector<at::Tensor> parts;
  for (size_t i = 0; i < weights.size(); ++i) parts.push_back(linear(x, *weights[i], biases[i]));
  return at::cat(parts, -1);
}

at::Tensor linear_gated(const at::Tensor& x, const Weight& gate, const at::Tensor& gate_bias,
                        const Weight& weight, const at::Tensor& bias,
                        const std::string& activation) {
  if (gate.blocks && weight.blocks && activation == "silu") {
    return linear_blocks(x, {gate.blocks.get(), weight.blocks.get()}, {gate_bias, bias}, true, {});
  }
  return linear_times(x, weight, bias, linear_activation(x, gate, gate_bias, activation));
}

at::Tensor rows_of(const Weight& weight, const at::Tensor& ids) {
  if (weight.blocks) return block_rows(*weight.blocks, ids);
  return at::embedding(weight.data, ids.to(weight.data.device()));
}

at::Tensor activate(const at::Tensor& x, const std::string& activation) {
  if (activation == "silu") return at::silu(x);
  if (activation == "gelu") return at::gelu(x);
  if (activation == "gelu_tanh") return at::gelu(x, "tanh");
  if (activation == "relu") return at::relu(x);
  throw Error("activation \"{}\" is unknown", activation);
}

}  // namespace heed
