// An engine without a backend: its naive form over packs and under autograd, and the steps of a
// whole sequence one after another.
#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "op/engine_call.h"
#include "op/parallel.h"

namespace heed::op {

using at::Tensor;
using kernel::is_input;
using kernel::Role;
using kernel::TensorField;

namespace {

// The dimension of tokens of a tensor of this field, -1 where it has none.
int64_t token_dimension(const TensorField& field, const Tensor& t) {
  int64_t dimension = -1, i = 0;
  kernel::shape_of_rank(field.shape, static_cast<int>(t.dim()))
      .for_each([&](std::string_view name, int64_t) {
        if (name == "T") dimension = i;
        ++i;
      });
  return dimension;
}

}  // namespace

void Engine::by_sequence(std::span<Tensor> tensors, const Tensor& cu_seqlens,
                         const std::function<void(std::vector<Tensor>&)>& one) const {
  const Tensor offsets = cu_seqlens.to(at::kCPU).contiguous();
  const int64_t* at = offsets.const_data_ptr<int64_t>();
  std::vector<std::vector<Tensor>> parts(tensors.size());
  // One sequence of no tokens where the pack has none, so that outputs have their sizes.
  const int64_t sequences = offsets.numel() - 1;
  for (int64_t n = 0; n < std::max<int64_t>(1, sequences); ++n) {
    const int64_t begin = n < sequences ? at[n] : 0, end = n < sequences ? at[n + 1] : 0;
    std::vector<Tensor> x(tensors.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const TensorField& field = fields_.tensors[i];
      if (!is_input(field.role) || !tensors[i].defined()) continue;
      const int64_t dimension = token_dimension(field, tensors[i]);
      x[i] = tensors[i];
      if (dimension >= 0) x[i] = x[i].slice(dimension, begin, end);
      if (field.role == Role::kState && n < sequences) x[i] = x[i].slice(0, n, n + 1);
      if (field.role == Role::kState && n >= sequences) x[i] = Tensor();
    }
    one(x);
    for (size_t i = 0; i < x.size(); ++i) {
      if (!is_input(fields_.tensors[i].role) && x[i].defined()) parts[i].push_back(x[i]);
    }
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (parts[i].empty()) continue;
    const TensorField& field = fields_.tensors[i];
    if (field.role == Role::kFinal) {
      tensors[i] = at::cat(parts[i], 0).slice(0, 0, sequences);
    } else {
      tensors[i] = at::cat(parts[i], token_dimension(field, parts[i][0]));
    }
  }
}

void Engine::run_form(Form form, std::span<Tensor> tensors, const void* options,
                      const Tensor& cu_seqlens) const {
  warm_vector_math();
  std::vector<Tensor> x(tensors.begin(), tensors.end());
  const bool wide = is_wide(fields_, tensors);
  bind_call(fields_, x, options, cu_seqlens, wide).check(HEED_FORWARD, wide);
  if (!cu_seqlens.defined() || form.packs) return form.run(tensors, options, cu_seqlens);
  by_sequence(tensors, cu_seqlens,
              [&](std::vector<Tensor>& one) { form.run(one, options, Tensor()); });
}

void Engine::run_steps(std::span<Tensor> tensors, const void* options,
                       const Tensor& cu_seqlens) const {
  const at::NoGradGuard no_grad;
  if (cu_seqlens.defined()) {
    std::vector<Tensor> x(tensors.begin(), tensors.end());
    const bool wide = is_wide(fields_, tensors);
    bind_call(fields_, x, options, cu_seqlens, wide).check(HEED_FORWARD, wide);
    return by_sequence(tensors, cu_seqlens,
                       [&](std::vector<Tensor>& one) { run_steps(one, options, {}); });
  }
  int64_t length = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t dimension =
        tensors[i].defined() ? token_dimension(fields_.tensors[i], tensors[i]) : -1;
    if (dimension >= 0) length = tensors[i].size(dimension);
  }
  const auto tokens = [&](int64_t begin, int64_t end) {
    std::vector<Tensor> x(tensors.begin(), tensors.end());
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t dimension = x[i].defined() ? token_dimension(fields_.tensors[i], x[i]) : -1;
      if (dimension >= 0) x[i] = x[i].slice(dimension, begin, end);
    }
    return x;
  };
  // The first token makes the states where none are given.
  std::vector<Tensor> first = tokens(0, std::min<int64_t>(1, length));
  run_forward(first, options, {}, nullptr);
  std::vector<std::vector<Tensor>> outs(tensors.size());
  std::vector<Tensor> states;
  for (size_t i = 0; i < first.size(); ++i) {
    if (fields_.tensors[i].role == Role::kOut) outs[i].push_back(first[i]);
    if (fields_.tensors[i].role == Role::kFinal) states.push_back(first[i]);
  }
  for (int64_t t = 1; t < length; ++t) {
    std::vector<Tensor> x = tokens(t, t + 1);
    size_t state = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (fields_.tensors[i].role == Role::kState) x[i] = states[state++];
    }
    step(x, options);
    for (size_t i = 0; i < x.size(); ++i) {
      if (fields_.tensors[i].role == Role::kOut) outs[i].push_back(x[i]);
    }
  }
  size_t state = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorField& field = fields_.tensors[i];
    if (field.role == Role::kFinal) tensors[i] = states[state++];
    if (field.role == Role::kOut && outs[i][0].defined()) {
      tensors[i] = at::cat(outs[i], token_dimension(field, outs[i][0]));
    }
  }
}

void Engine::form_backward(Form form, std::span<Tensor> tensors, std::span<Tensor> grads,
                           const void* options, const Tensor& cu_seqlens) const {
  const at::AutoGradMode grad_mode(true);
  // A backward pass runs below autograd, and there nothing of the form would be recorded.
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const c10::impl::ForceDispatchKeyGuard with_autograd(
      local.included_, local.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  std::vector<Tensor> x(tensors.size()), wanted, outputs, incoming;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!is_input(fields_.tensors[i].role) || !tensors[i].defined()) continue;
    x[i] = tensors[i];
    if (!takes_gradient(fields_.tensors[i].role)) continue;
    wanted.push_back(x[i] = tensors[i].detach().requires_grad_());
  }
  run_form(form, x, options, cu_seqlens);
  for (size_t i = 0; i < x.size(); ++i) {
    if (is_input(fields_.tensors[i].role) || !x[i].defined() || !grads[i].defined()) continue;
    if (x[i].requires_grad())
      outputs.push_back(x[i]), incoming.push_back(grads[i].to(x[i].dtype()));
  }
  std::vector<Tensor> results(wanted.size());
  if (!outputs.empty()) {
    results = torch::autograd::grad(outputs, wanted, incoming, std::nullopt, false, true);
  }
  size_t next = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!takes_gradient(fields_.tensors[i].role) || !tensors[i].defined()) continue;
    const Tensor& g = results[next++];
    grads[i] = g.defined() ? g : at::zeros_like(tensors[i]);
  }
}

}  // namespace heed::op
