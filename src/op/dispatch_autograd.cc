// One autograd function for all engines: above the table of backends, on every device.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstring>

#include "op/dispatch.h"
#include "op/engine_call.h"
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
                                                bool redispatch, const std::vector<bool>& present,
                                                std::vector<bool>* absent) {
    const CallFields& fields = engine->fields();
    const at::AutoDispatchBelowADInplaceOrView guard;
    Arguments a;
    a.tensors.resize(fields.tensors.size());
    size_t given = 0;
    for (size_t i = 0; i < present.size(); ++i) {
      if (present[i]) a.tensors[i] = inputs[given++];
    }
    a.options = options;
    a.cu_seqlens = cu_seqlens.value_or(Tensor());
    const auto outputs_at = static_cast<int64_t>(present.size());
    torch::autograd::variable_list kept(a.tensors.begin(), a.tensors.begin() + outputs_at);
    if (redispatch) {
      const auto op = find_op(fields, "_forward");
      torch::jit::Stack stack = push_arguments(op, fields, a);
      op.callBoxed(stack);
      for (size_t i = present.size(); i < a.tensors.size(); ++i) {
        a.tensors[i] = tensor_of(stack[i - present.size()]);
      }
      a.saved = tensor_of(stack.back());
    } else {
      engine->run_forward(a.tensors, a.options.data(), a.cu_seqlens, &a.saved);
    }
    torch::autograd::variable_list outputs(a.tensors.begin() + outputs_at, a.tensors.end());
    if (fields.traits.keeps_outputs) kept.insert(kept.end(), outputs.begin(), outputs.end());
    kept.push_back(a.cu_seqlens);
    kept.push_back(a.saved);
    // Autograd has no place for an output that is not there: an empty tensor stands in for it.
    torch::autograd::variable_list stand_ins;
    for (Tensor& output : outputs) {
      absent->push_back(!output.defined());
      if (!output.defined()) stand_ins.push_back(output = at::empty({0}));
    }
    ctx->mark_non_differentiable(stand_ins);
    ctx->save_for_backward(std::move(kept));
    std::vector<int64_t> raw = {reinterpret_cast<int64_t>(engine), redispatch};
    for (const Option& option : options) raw.push_back(option.integer);
    ctx->saved_data["call"] = std::move(raw);
    ctx->set_materialize_grads(false);
    return outputs;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list incoming) {
    const auto raw = ctx->saved_data["call"].toIntVector();
    const auto& engine = *reinterpret_cast<const Engine*>(raw[0]);
    const CallFields& fields = engine.fields();
    Arguments a;
    a.tensors = ctx->get_saved_variables();
    a.saved = a.tensors.back();
    a.tensors.pop_back();
    a.cu_seqlens = a.tensors.back();
    a.tensors.pop_back();
    a.tensors.resize(fields.tensors.size());
    a.grads.resize(fields.tensors.size());
    for (size_t i = 2; i < raw.size(); ++i) {
      Option option;
      option.integer = raw[i];
      a.options.push_back(option);
    }
    size_t next = 0;
    bool any = false;
    for (size_t i = 0; i < fields.tensors.size(); ++i) {
      if (is_input(fields.tensors[i].role)) continue;
      a.grads[i] = incoming[next++];
      any |= a.grads[i].defined();
    }
    if (any) run(engine, raw[1] != 0, a);
    torch::autograd::variable_list grads;
    for (size_t i = 0; i < fields.tensors.size(); ++i) {
      const kernel::Role role = fields.tensors[i].role;
      if (!is_input(role) || !a.tensors[i].defined()) continue;
      grads.push_back(any && takes_gradient(role) ? a.grads[i] : Tensor());
    }
    grads.resize(grads.size() + 6);  // engine, options, cu_seqlens, redispatch, present, absent
    return grads;
  }

 private:
  static void run(const Engine& engine, bool redispatch, Arguments& a) {
    const CallFields& fields = engine.fields();
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (!redispatch) {
      return engine.run_backward(a.tensors, a.grads, a.options.data(), a.cu_seqlens, a.saved);
    }
    const auto op = find_op(fields, "_backward");
    torch::jit::Stack stack = push_arguments(op, fields, a);
    op.callBoxed(stack);
    size_t next = 0;
    for (size_t i = 0; i < fields.tensors.size(); ++i) {
      if (takes_gradient(fields.tensors[i].role)) a.grads[i] = tensor_of(stack[next++]);
    }
  }
};

// Tensors that a kernel could read: not the stand-ins of a compiler.
bool are_plain(std::span<const Tensor> tensors) {
  return std::none_of(tensors.begin(), tensors.end(), [](const Tensor& t) {
    return t.defined() && (t.is_meta() || t.key_set().has(c10::DispatchKey::Python));
  });
}

}  // namespace

bool Engine::record(std::span<Tensor> tensors, const void* options,
                    const Tensor& cu_seqlens) const {
  const at::Device device = device_of(fields_, tensors);
  const int32_t kind = device.is_cuda() ? HEED_CUDA : HEED_CPU;
  bool possible = false;
  for (size_t i = 0; i < forms_.size(); ++i) {
    possible |= forms_[i].run != nullptr && backends_[i]->device == kind;
  }
  if (!possible || !are_plain(tensors)) return false;
  const bool wide = is_wide(fields_, tensors);
  std::vector<Tensor> x(tensors.begin(), tensors.end());
  KernelCall call = bind_call(fields_, x, options, cu_seqlens, wide);
  call.check(HEED_FORWARD, wide);
  const Choice choice = choose(device, wide, call.data(), HEED_FORWARD);
  if (choice.form.run == nullptr) return false;
  run_form(choice.form, tensors, options, cu_seqlens);
  return true;
}

void Engine::differentiable(std::span<Tensor> tensors, const void* options,
                            const Tensor& cu_seqlens, bool redispatch) const {
  if (record(tensors, options, cu_seqlens)) return;
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
      EngineFunction::apply(at::TensorList(given), this, kept, packs, redispatch, present, &absent);
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
  differentiable(tensors, options, cu_seqlens, false);
}

}  // namespace heed::op
