// The table of engines, and how a call runs: on the first backend that takes it, else naive.
#include "op/dispatch.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "io/error.h"
#include "op/engine_call.h"
#include "op/parallel.h"

namespace heed::op {
namespace {

using at::Tensor;
using kernel::CallFields;
using kernel::is_input;
using kernel::Role;

std::vector<Engine*>& table() {
  static std::vector<Engine*> engines;
  return engines;
}

}  // namespace

Engine::Engine(const CallFields& fields, Form naive, std::span<const heed_backend> backends,
               std::span<const TensorBackend> tensor_backends)
    : fields_(fields), naive_(naive) {
  for (const heed_backend& backend : backends) add(backend);
  for (const TensorBackend& backend : tensor_backends) add(backend.row, backend.form);
  table().push_back(this);
}

Engine::~Engine() { std::erase(table(), this); }

void Engine::add(const heed_backend& backend, Form form) {
  if (backend.struct_size != sizeof(heed_backend)) {
    throw Error("a backend of {} is of another version ({} bytes, not {})", fields_.engine,
                backend.struct_size, sizeof(heed_backend));
  }
  const auto at = std::find_if(backends_.begin(), backends_.end(), [&](const heed_backend* other) {
    return other->priority < backend.priority;
  });
  forms_.insert(forms_.begin() + (at - backends_.begin()), form);
  backends_.insert(at, &backend);
}

std::vector<const Engine*> engines() {
  std::vector<const Engine*> list(table().begin(), table().end());
  std::sort(list.begin(), list.end(), [](const Engine* a, const Engine* b) {
    return std::string_view(a->fields().engine) < b->fields().engine;
  });
  return list;
}

void add_backend(const heed_backend& backend) {
  for (Engine* engine : table()) {
    if (std::string_view(engine->fields().engine) == backend.engine) return engine->add(backend);
  }
  throw Error("backend {} is for the engine {}, which this program does not have", backend.name,
              backend.engine);
}

Engine::Choice Engine::choose(const at::Device& device, bool wide, const void* call,
                              int32_t pass) const {
  Choice choice;
  if (wide) {
    choice.reasons = "float64 has no kernel";
    return choice;
  }
  const int32_t kind = device.is_cuda() ? HEED_CUDA : HEED_CPU;
  for (size_t i = 0; i < backends_.size(); ++i) {
    const heed_backend* backend = backends_[i];
    if (backend->device != kind) continue;
    const char* reason = backend->refuses ? backend->refuses(call, pass) : nullptr;
    if (reason == nullptr) {
      choice.backend = backend;
      choice.form = forms_[i];
      return choice;
    }
    choice.reasons +=
        fmt::format("{}{}: {}", choice.reasons.empty() ? "" : "; ", backend->name, reason);
  }
  if (choice.reasons.empty()) choice.reasons = "it has no kernel there yet";
  return choice;
}

void Engine::warn(const at::Device& device, const Choice& choice) const {
  const char* name = fields_.engine;
  warn_naive(device.is_cuda() ? fmt::format("{} on CUDA", name) : name, choice.reasons);
}

void Engine::run_forward(std::span<Tensor> tensors, const void* options, const Tensor& cu_seqlens,
                         Tensor* saved) const {
  const bool wide = is_wide(fields_, tensors);
  std::vector<Tensor> x(tensors.begin(), tensors.end());
  KernelCall call = bind_call(fields_, x, options, cu_seqlens, wide);
  const kernel::CallSizes sizes = call.check(HEED_FORWARD, wide);
  const at::Device device = device_of(fields_, tensors);
  const Choice choice = choose(device, wide, call.data(), HEED_FORWARD);
  if (choice.backend == nullptr || choice.form.run != nullptr) {
    if (choice.backend == nullptr) warn(device, choice);
    const at::NoGradGuard no_grad;
    return run_form(choice.backend ? choice.form : naive_, tensors, options, cu_seqlens);
  }
  make_outputs(fields_, x, sizes, wide);
  for (size_t i = 0; i < x.size(); ++i) {
    if (!is_input(fields_.tensors[i].role) && x[i].defined()) call.set(i, x[i]);
  }
  if (saved != nullptr && choice.backend->saved != nullptr) {
    const int64_t bytes = choice.backend->saved(call.data());
    if (bytes > 0) {
      *saved = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
      call.head().saved = saved->mutable_data_ptr();
    }
  }
  call.run(*choice.backend, HEED_FORWARD, device);
  for (size_t i = 0; i < x.size(); ++i) {
    if (!is_input(fields_.tensors[i].role)) tensors[i] = std::move(x[i]);
  }
}

void Engine::run_backward(std::span<Tensor> tensors, std::span<Tensor> grads, const void* options,
                          const Tensor& cu_seqlens, const Tensor& saved) const {
  const bool wide = is_wide(fields_, tensors);
  std::vector<Tensor> x(tensors.begin(), tensors.end()), g(grads.begin(), grads.end());
  KernelCall call = bind_call(fields_, x, options, cu_seqlens, wide);
  const at::TensorOptions token = token_options(fields_, tensors);
  for (size_t i = 0; i < x.size(); ++i) {
    const Role role = fields_.tensors[i].role;
    if (is_input(role)) {
      if (x[i].defined() && takes_gradient(role)) {
        g[i] = at::empty(x[i].sizes(), x[i].options().dtype(at::kFloat));
      }
    } else {
      if (g[i].defined()) {
        if (role == Role::kOut) g[i] = g[i].to(c10::typeMetaToScalarType(token.dtype()));
        prepare(g[i], fields_.tensors[i], wide);
      }
      if (fields_.traits.keeps_outputs && x[i].defined()) {
        prepare(x[i], fields_.tensors[i], wide);
        call.set(i, x[i]);
      }
    }
    if (g[i].defined()) call.set_grad(i, g[i]);
  }
  call.check(HEED_BACKWARD, wide);
  const at::Device device = token.device();
  const Choice choice = choose(device, wide, call.data(), HEED_BACKWARD);
  if (choice.backend == nullptr || choice.form.run != nullptr) {
    if (choice.backend == nullptr) warn(device, choice);
    return form_backward(choice.backend ? choice.form : naive_, tensors, grads, options,
                         cu_seqlens);
  }
  if (saved.defined() && saved.numel() > 0) call.head().saved = saved.mutable_data_ptr();
  call.run(*choice.backend, HEED_BACKWARD, device);
  for (size_t i = 0; i < x.size(); ++i) {
    if (takes_gradient(fields_.tensors[i].role) && x[i].defined()) {
      grads[i] = g[i].to(tensors[i].scalar_type());
    }
  }
}

void Engine::step(std::span<Tensor> tensors, const void* options) const {
  const bool wide = is_wide(fields_, tensors);
  std::vector<Tensor> x(tensors.begin(), tensors.end());
  KernelCall call = bind_call(fields_, x, options, {}, wide);
  // The i-th final state takes the place of the i-th state.
  constexpr size_t kMost = 8;
  size_t states[kMost], finals[kMost], count = 0, last = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (fields_.tensors[i].role == Role::kState) states[count++] = i;
    if (fields_.tensors[i].role == Role::kFinal) finals[last++] = i;
  }
  for (size_t i = 0; i < last; ++i) {
    if (x[states[i]].defined()) call.set(finals[i], x[finals[i]] = x[states[i]]);
  }
  const kernel::CallSizes sizes = call.check(HEED_STEP, wide);
  const at::Device device = device_of(fields_, tensors);
  const Choice choice = choose(device, wide, call.data(), HEED_STEP);
  if (choice.backend == nullptr || choice.form.run != nullptr) {
    if (choice.backend == nullptr) warn(device, choice);
    const at::NoGradGuard no_grad;
    std::vector<Tensor> y(tensors.begin(), tensors.end());
    for (size_t i = 0; i < last; ++i) y[finals[i]] = Tensor();
    (choice.backend ? choice.form : naive_).run(y, options, {});
    x = y;
  } else {
    make_outputs(fields_, x, sizes, wide);
    for (size_t i = 0; i < x.size(); ++i) {
      if (fields_.tensors[i].role == Role::kOut && x[i].defined()) call.set(i, x[i]);
    }
    call.run(*choice.backend, HEED_STEP, device);
  }
  for (size_t i = 0; i < last; ++i) {
    Tensor& state = tensors[states[i]];
    if (state.defined() && !x[finals[i]].is_same(state)) state.copy_(x[finals[i]]);
  }
  for (size_t i = 0; i < x.size(); ++i) {
    if (fields_.tensors[i].role == Role::kOut) tensors[i] = std::move(x[i]);
  }
}

}  // namespace heed::op
