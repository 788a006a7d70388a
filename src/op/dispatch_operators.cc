// The four operators of an engine in PyTorch's dispatcher, for every key.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <map>

#include "io/error.h"
#include "op/dispatch.h"
#include "op/engine_call.h"
#include "op/operator_arguments.h"

namespace heed::op {
namespace {

using at::Tensor;
using kernel::CallFields;
using kernel::is_input;
using kernel::Role;
using kernel::TensorField;

const Engine& engine_of(const c10::OperatorHandle& op) {
  std::string_view name = op.operator_name().name;  // heed::NAME_backward
  name.remove_prefix(6);
  for (const char* suffix : {"_forward", "_backward", "_step"}) {
    if (name.ends_with(suffix)) name.remove_suffix(std::string_view(suffix).size());
  }
  for (const Engine* engine : engines()) {
    if (name == engine->fields().engine) return *engine;
  }
  throw Error("operator {} belongs to no engine", op.operator_name().name);
}

void plain_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const Engine& engine = engine_of(op);
  Arguments a = pop_arguments(op, engine.fields(), stack);
  const bool keep = op.operator_name().name.ends_with("_forward");
  engine.run_forward(a.tensors, a.options.data(), a.cu_seqlens, keep ? &a.saved : nullptr);
  push_outputs(engine.fields(), a, true, keep, stack);
}

void autograd_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const Engine& engine = engine_of(op);
  Arguments a = pop_arguments(op, engine.fields(), stack);
  engine.differentiable(a.tensors, a.options.data(), a.cu_seqlens, true);
  push_outputs(engine.fields(), a, true, false, stack);
}

void backward_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const Engine& engine = engine_of(op);
  const CallFields& fields = engine.fields();
  Arguments a = pop_arguments(op, fields, stack);
  engine.run_backward(a.tensors, a.grads, a.options.data(), a.cu_seqlens, a.saved);
  for (size_t i = 0; i < fields.tensors.size(); ++i) {
    if (takes_gradient(fields.tensors[i].role)) stack->emplace_back(a.grads[i]);
  }
}

void step_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const Engine& engine = engine_of(op);
  Arguments a = pop_arguments(op, engine.fields(), stack);
  engine.step(a.tensors, a.options.data());
  push_outputs(engine.fields(), a, false, false, stack);
}

// Shapes alone, of symbolic sizes too; what they must be is checked where there are numbers.
void meta_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const Engine& engine = engine_of(op);
  const CallFields& fields = engine.fields();
  Arguments a = pop_arguments(op, fields, stack);
  const std::string& name = op.operator_name().name;
  if (name.ends_with("_backward")) {
    for (size_t i = 0; i < fields.tensors.size(); ++i) {
      if (!takes_gradient(fields.tensors[i].role)) continue;
      stack->emplace_back(a.tensors[i].defined() ? at::empty_like(a.tensors[i]) : Tensor());
    }
    return;
  }
  std::map<std::string_view, c10::SymInt> sizes;
  int extra = 0;
  for (size_t i = a.tensors.size(); i-- > 0;) {
    const TensorField& field = fields.tensors[i];
    if (!takes_gradient(field.role) || !a.tensors[i].defined()) continue;
    const int rank = static_cast<int>(a.tensors[i].dim());
    if (field.role == Role::kToken) extra = rank - kernel::first_shape(field.shape).rank();
    int d = 0;
    kernel::shape_of_rank(field.shape, rank).for_each([&](std::string_view size, int64_t literal) {
      if (literal < 0 && !size.ends_with("-1")) sizes[size] = a.tensors[i].sym_size(d);
      ++d;
    });
  }
  if (sizes.count("B")) sizes["N"] = sizes["B"];
  if (a.cu_seqlens.defined()) sizes["N"] = a.cu_seqlens.sym_size(0) - 1;
  const at::TensorOptions token = token_options(fields, a.tensors);
  const auto state = token.dtype(token.dtype() == at::kDouble ? at::kDouble : at::kFloat);
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    const TensorField& field = fields.tensors[i];
    if (is_input(field.role)) continue;
    const int rank = kernel::first_shape(field.shape).rank();
    std::vector<c10::SymInt> shape;
    bool known = true;
    const bool choice = std::string_view(field.shape).find('|') != std::string_view::npos;
    kernel::shape_of_rank(field.shape, choice ? rank + extra : rank)
        .for_each([&](std::string_view size, int64_t literal) {
          const bool less = size.ends_with("-1");
          const auto it = sizes.find(less ? size.substr(0, size.size() - 2) : size);
          known &= literal >= 0 || it != sizes.end();
          if (known) shape.push_back(literal >= 0 ? c10::SymInt(literal) : it->second - less);
        });
    if (known) a.tensors[i] = at::empty_symint(shape, field.role == Role::kOut ? token : state);
  }
  push_outputs(fields, a, !name.ends_with("_step"), name.ends_with("_forward"), stack);
}

}  // namespace

void Engine::define(torch::Library& library) const {
  using c10::DispatchKey;
  const auto put = [&](Op op, DispatchKey key, auto kernel) {
    const std::string text = schema(fields_, op);
    const std::string name = text.substr(0, text.find('('));
    library.impl(name.c_str(), torch::dispatch(key, std::move(kernel)));
  };
  for (const Op op : {Op::kPlain, Op::kForward, Op::kBackward, Op::kStep}) {
    if (op == Op::kStep && !fields_.traits.steps) continue;
    library.def(torch::schema(schema(fields_, op).c_str()));
    for (const DispatchKey key : {DispatchKey::CPU, DispatchKey::CUDA}) {
      switch (op) {
        case Op::kBackward:
          put(op, key, torch::CppFunction::makeFromBoxedFunction<&backward_kernel>());
          break;
        case Op::kStep:
          put(op, key, torch::CppFunction::makeFromBoxedFunction<&step_kernel>());
          break;
        default:
          put(op, key, torch::CppFunction::makeFromBoxedFunction<&plain_kernel>());
      }
    }
    put(op, DispatchKey::Meta, torch::CppFunction::makeFromBoxedFunction<&meta_kernel>());
  }
  put(Op::kPlain, DispatchKey::Autograd,
      torch::CppFunction::makeFromBoxedFunction<&autograd_kernel>());
}

}  // namespace heed::op
