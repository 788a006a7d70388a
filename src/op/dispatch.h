// One way from PyTorch to the kernels of every engine: an engine is its list of fields, its naive
// form and a table of backends. From these come the operators
//
//   heed::NAME           (inputs, *, optional inputs, cu_seqlens, options) -> outputs
//   heed::NAME_forward   the same, and `saved`: what a backend keeps for its backward pass
//   heed::NAME_backward  (gradients of the outputs, saved, and the arguments of NAME) -> gradients
//   heed::NAME_step      (as NAME, T = 1; the states are updated in place) -> outputs
//
// A call runs on the first backend of its device that does not refuse it, by priority; where all
// refuse, the naive form runs, with one warning that names their reasons. Autograd stands above the
// table, on every device. See docs/decisions/0017-engine-calls.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernel/call/fields.h"

namespace torch {
class Library;
}

namespace heed::op {

// A form of an engine made of ordinary tensor operations: reads the inputs among `tensors` (in the
// order of the list; absent ones undefined) and fills the outputs. float64 inputs stay float64, all
// others are computed in float32. Differentiable.
struct EngineForm {
  void (*run)(std::span<at::Tensor> tensors, const void* options,
              const at::Tensor& cu_seqlens) = nullptr;
  bool packs = false;  // takes whole packs; else they are taken apart before
};

class Engine {
 public:
  using Form = EngineForm;
  // A row of the table made so: its row has no `run`. What such a row does under autograd is
  // recorded by PyTorch, operator by operator; it has no backward pass of its own.
  struct TensorBackend {
    heed_backend row;
    Form form;

    static TensorBackend on_cuda(const char* engine, const char* name, int32_t priority,
                                 const char* (*refuses)(const void*, int32_t), Form form) {
      const auto no_workspace = [](const void*, int32_t, int32_t) -> int64_t { return 0; };
      return {{sizeof(heed_backend), engine, name, HEED_CUDA, priority, refuses, no_workspace,
               nullptr, nullptr},
              form};
    }
  };

  Engine(const kernel::CallFields& fields, Form naive, std::span<const heed_backend> backends,
         std::span<const TensorBackend> tensor_backends = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const kernel::CallFields& fields() const { return fields_; }
  // By falling priority.
  std::span<const heed_backend* const> backends() const { return backends_; }
  void add(const heed_backend& backend, Form form = {});

  // The operators NAME and NAME_step: `tensors` in the order of the list, outputs are filled in.
  // cu_seqlens: int64 [N+1] on the CPU, or undefined. Throws UsageError naming what does not fit.
  void forward(std::span<at::Tensor> tensors, const void* options,
               const at::Tensor& cu_seqlens) const;
  void step(std::span<at::Tensor> tensors, const void* options) const;

  // Registers the four operators.
  void define(torch::Library& library) const;

  // NAME without autograd. saved: nullptr, or set to what backward may use (may stay undefined).
  void run_forward(std::span<at::Tensor> tensors, const void* options, const at::Tensor& cu_seqlens,
                   at::Tensor* saved) const;
  // grads: gradients of the outputs in, undefined ones are zero; those of the inputs out.
  void run_backward(std::span<at::Tensor> tensors, std::span<at::Tensor> grads, const void* options,
                    const at::Tensor& cu_seqlens, const at::Tensor& saved) const;
  // The sequences of a call token by token: what decoding computes. Not differentiable.
  void run_steps(std::span<at::Tensor> tensors, const void* options,
                 const at::Tensor& cu_seqlens) const;
  // NAME under autograd: its backward pass is run_backward, or what PyTorch recorded of a row made
  // of its operators. `redispatch`: through PyTorch's dispatcher, where tensors may be stand-ins.
  void differentiable(std::span<at::Tensor> tensors, const void* options,
                      const at::Tensor& cu_seqlens, bool redispatch) const;
  // The naive form, sequence by sequence of a pack; differentiable by autograd.
  void run_naive(std::span<at::Tensor> tensors, const void* options,
                 const at::Tensor& cu_seqlens) const {
    run_form(naive_, tensors, options, cu_seqlens);
  }
  // Checks the call and runs it in any form of this engine.
  void run_form(Form form, std::span<at::Tensor> tensors, const void* options,
                const at::Tensor& cu_seqlens) const;
  // run_backward by autograd through a form.
  void form_backward(Form form, std::span<at::Tensor> tensors, std::span<at::Tensor> grads,
                     const void* options, const at::Tensor& cu_seqlens) const;

 private:
  // one(inputs of a sequence) fills its outputs, for each sequence of a pack.
  void by_sequence(std::span<at::Tensor> tensors, const at::Tensor& cu_seqlens,
                   const std::function<void(std::vector<at::Tensor>&)>& one) const;
  // The row that takes a call, or nullptr and, for the warning, the reasons; with the row its form.
  struct Choice {
    const heed_backend* backend = nullptr;
    Form form;
    std::string reasons;
  };
  Choice choose(const at::Device& device, bool wide, const void* call, int32_t pass) const;
  void warn(const at::Device& device, const Choice& choice) const;
  // Runs a row made of PyTorch's operators, recorded by autograd, if that is who takes the call.
  bool record(std::span<at::Tensor> tensors, const void* options,
              const at::Tensor& cu_seqlens) const;

  kernel::CallFields fields_;
  Form naive_;
  std::vector<const heed_backend*> backends_;
  std::vector<Form> forms_;  // of the backends
};

// Every engine that has been made so, by name.
std::vector<const Engine*> engines();

// What the backends of an engine say to a call of these sizes (names of the list's shapes; others
// are 64, B is 1) with the tensors that it must have, for the passes forward, backward and step:
// the reason for refusing, empty where it takes the call. UsageError for a name that no shape has,
// and for sizes that the engine itself does not take.
struct BackendAnswer {
  const heed_backend* backend;
  std::vector<std::pair<std::string, std::string>> passes;
};
std::vector<BackendAnswer> ask_backends(const Engine& engine,
                                        const std::map<std::string, int64_t>& sizes,
                                        heed_dtype dtype);

// Adds a row to the table of the engine that it names, as the CUDA plugin does when it is opened;
// throws Error where there is no such engine.
void add_backend(const heed_backend& backend);

// An engine's call as a struct of tensors: what typed functions over an Engine are made of.
template <class C>
using TensorsOf = typename C::template Tensors<at::Tensor>;
template <class Tensors>
std::span<at::Tensor> tensor_list(Tensors& tensors) {
  return {reinterpret_cast<at::Tensor*>(&tensors), sizeof(Tensors) / sizeof(at::Tensor)};
}

// An Engine::Form out of a function over the structs.
template <class C, void (*kForm)(TensorsOf<C>&, const typename C::Options&)>
inline constexpr EngineForm naive_of = {
    [](std::span<at::Tensor> tensors, const void* options, const at::Tensor&) {
      kForm(*reinterpret_cast<TensorsOf<C>*>(tensors.data()),
            *static_cast<const typename C::Options*>(options));
    }};

}  // namespace heed::op
