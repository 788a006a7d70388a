// One autograd function for all engines: above the table of backends, on every device.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstring>

#include "op/dispatch.h"
#include "op/library.h"
#include "op/operator_arguments.h"

namespace heed::op {
namespace {

using at::Tensor;
using kernel::CallFields;
using kernel::is_input;

c10::OperatorHandle find_op(const CallFields& fields, const char* suffix) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(
      fmt::format("heed::{}{}", fields.engine, suffix).c_str(), "");
}

class EngineFunction : public torch::autograd::Function<EngineFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                at::TensorList inputs, const Engine* engine,
                                                const Options& options,
                                                const std::optional<Tensor>& cu_seqlens,
                                                const std::vector<bool>& present,
                                                std::vector<bool>* absent) {
    const CallFields& fields = engine->fields();
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto op = find_op(fields, "_forward");
    Arguments a;
    a.tensors.resize(fields.tensors.size());
    size_t given = 0;
    for (size_t i = 0; i < present.size(); ++i) {
      if (present[i]) a.tensors[i] = inputs[given++];
    }
    a.options = options;
    a.cu_seqlens = cu_seqlens.value_or(Tensor());
    torch::autograd::variable_list kept(a.tensors.begin(),
                                        a.tensors.begin() + static_cast<int64_t>(present.size()));
    torch::jit::Stack stack = push_arguments(op, fields, a);
    op.callBoxed(stack);
    torch::autograd::variable_list outputs;
    for (const auto& value : stack) outputs.push_back(tensor_of(value));
    kept.push_back(a.cu_seqlens);
    kept.push_back(outputs.back());
    outputs.pop_back();
    // Autograd has no place for an output that is not there: an empty tensor stands in for it.
    torch::autograd::variable_list stand_ins;
    for (Tensor& output : outputs) {
      absent->push_back(!output.defined());
      if (!output.defined()) stand_ins.push_back(output = at::empty({0}));
    }
    ctx->mark_non_differentiable(stand_ins);
    ctx->save_for_backward(kept);
    ctx->saved_data["engine"] = reinterpret_cast<int64_t>(engine);
    std::vector<int64_t> raw;
    for (const Option& option : options) raw.push_back(option.integer);
    ctx->saved_data["options"] = raw;
    ctx->set_materialize_grads(false);
    return outputs;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list incoming) {
    const auto& engine = *reinterpret_cast<const Engine*>(ctx->saved_data["engine"].toInt());
    const CallFields& fields = engine.fields();
    Arguments a;
    a.tensors = ctx->get_saved_variables();
    a.saved = a.tensors.back();
    a.tensors.pop_back();
    a.cu_seqlens = a.tensors.back();
    a.tensors.pop_back();
    const size_t inputs = a.tensors.size();
    a.tensors.resize(fields.tensors.size());
    a.grads.resize(fields.tensors.size());
    for (const int64_t raw : ctx->saved_data["options"].toIntVector()) {
      Option option;
      option.integer = raw;
      a.options.push_back(option);
    }
    size_t next = 0;
    for (size_t i = 0; i < fields.tensors.size(); ++i) {
      if (!is_input(fields.tensors[i].role)) a.grads[i] = incoming[next++];
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto op = find_op(fields, "_backward");
    torch::jit::Stack stack = push_arguments(op, fields, a);
    op.callBoxed(stack);
    torch::autograd::variable_list grads;
    for (size_t i = 0; i < stack.size(); ++i) {
      if (i < inputs && a.tensors[i].defined()) grads.push_back(tensor_of(stack[i]));
    }
    grads.resize(grads.size() + 5);  // engine, options, cu_seqlens, present, absent
    return grads;
  }
};

}  // namespace

void Engine::differentiable(std::span<Tensor> tensors, const void* options,
                            const Tensor& cu_seqlens) const {
  // Autograd takes no input that is not there: those that are, and which they are.
  std::vector<Tensor> given;
  std::vector<bool> present, absent;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!is_input(fields_.tensors[i].role)) continue;
    const Tensor& input = tensors[i];
    present.push_back(input.defined());
    if (input.defined()) given.push_back(input);
  }
  Options kept(fields_.options.size());
  std::memcpy(kept.data(), options, kept.size() * sizeof(Option));
  std::optional<Tensor> packs;
  if (cu_seqlens.defined()) packs = cu_seqlens;
  const auto outputs =
      EngineFunction::apply(at::TensorList(given), this, kept, packs, present, &absent);
  size_t next = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (is_input(fields_.tensors[i].role)) continue;
    tensors[i] = absent[next] ? Tensor() : outputs[next];
    ++next;
  }
}

void Engine::forward(std::span<Tensor> tensors, const void* options,
                     const Tensor& cu_seqlens) const {
  bool grad = false;
  for (const Tensor& t : tensors) grad |= t.defined() && t.requires_grad();
  if (!grad || !at::GradMode::is_enabled()) {
    return run_forward(tensors, options, cu_seqlens, nullptr);
  }
  link_library();
  differentiable(tensors, options, cu_seqlens);
}

}  // namespace heed::op
