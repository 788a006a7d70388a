// The table of engines, and how a call runs: on the first backend that takes it, else naive.
#include "op/dispatch.h"

#include <ATen/ATen.h>

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

std::string refusals(const Engine& engine, const at::Device& device, const void* call, int32_t pass,
                     const heed_backend** chosen) {
  std::string reasons;
  const int32_t kind = device.is_cuda() ? HEED_CUDA : HEED_CPU;
  for (const heed_backend* backend : engine.backends()) {
    if (backend->device != kind) continue;
    const char* reason = backend->refuses ? backend->refuses(call, pass) : nullptr;
    if (reason == nullptr) {
      *chosen = backend;
      return {};
    }
    reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", backend->name, reason);
  }
  *chosen = nullptr;
  return reasons.empty() ? "it has no kernel there yet" : reasons;
}

void warn(const Engine& engine, const at::Device& device, const std::string& reasons) {
  const char* name = engine.fields().engine;
  warn_naive(device.is_cuda() ? fmt::format("{} on CUDA", name) : name, reasons);
}

}  // namespace

Engine::Engine(const CallFields& fields, Naive naive, std::span<const heed_backend> backends)
    : fields_(fields), naive_(naive) {
  for (const heed_backend& backend : backends) add(backend);
  table().push_back(this);
}

Engine::~Engine() { std::erase(table(), this); }

void Engine::add(const heed_backend& backend) {
  if (backend.struct_size != sizeof(heed_backend)) {
    throw Error("a backend of {} is of another version ({} bytes, not {})", fields_.engine,
                backend.struct_size, sizeof(heed_backend));
  }
  backends_.push_back(&backend);
  std::stable_sort(backends_.begin(), backends_.end(),
                   [](const auto* a, const auto* b) { return a->priority > b->priority; });
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

void Engine::run_forward(std::span<Tensor> tensors, const void* options, const Tensor& cu_seqlens,
                         Tensor* saved) const {
  const bool wide = is_wide(fields_, tensors);
  std::vector<Tensor> x(tensors.begin(), tensors.end());
  KernelCall call = bind(fields_, x, options, cu_seqlens, wide);
  make_outputs(fields_, x, call.check(HEED_FORWARD), wide);
  const at::Device device = device_of(fields_, tensors);
  const heed_backend* backend = nullptr;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!is_input(fields_.tensors[i].role)) call.set(i, x[i]);
  }
  const std::string reasons =
      wide ? "float64 has no kernel" : refusals(*this, device, call.data(), HEED_FORWARD, &backend);
  if (backend == nullptr) {
    warn(*this, device, reasons);
    const at::NoGradGuard no_grad;
    run_naive(tensors, options, cu_seqlens);
    return;
  }
  if (saved != nullptr && backend->saved != nullptr) {
    const int64_t bytes = backend->saved(call.data());
    if (bytes > 0) {
      *saved = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
      call.head().saved = saved->mutable_data_ptr();
    }
  }
  call.run(*backend, HEED_FORWARD, device);
  for (size_t i = 0; i < x.size(); ++i) {
    if (!is_input(fields_.tensors[i].role)) tensors[i] = x[i];
  }
}

void Engine::run_backward(std::span<Tensor> tensors, std::span<Tensor> grads, const void* options,
                          const Tensor& cu_seqlens, const Tensor& saved) const {
  const bool wide = is_wide(fields_, tensors);
  std::vector<Tensor> x(tensors.begin(), tensors.end()), g(grads.begin(), grads.end());
  KernelCall call = bind(fields_, x, options, cu_seqlens, wide);
  const Tensor token = at::empty({0}, token_options(fields_, tensors));
  for (size_t i = 0; i < x.size(); ++i) {
    const Role role = fields_.tensors[i].role;
    if (is_input(role)) {
      if (x[i].defined()) g[i] = at::empty(x[i].sizes(), x[i].options().dtype(at::kFloat));
    } else if (g[i].defined()) {
      g[i] = prepared(role == Role::kOut ? g[i].to(token.scalar_type()) : g[i], fields_.tensors[i],
                      wide);
    }
    call.set_grad(i, g[i]);
  }
  call.check(HEED_BACKWARD);
  const at::Device device = token.device();
  const heed_backend* backend = nullptr;
  const std::string reasons = wide ? "float64 has no kernel"
                                   : refusals(*this, device, call.data(), HEED_BACKWARD, &backend);
  if (backend == nullptr) {
    warn(*this, device, reasons);
    return naive_backward(tensors, grads, options, cu_seqlens);
  }
  if (saved.defined() && saved.numel() > 0) call.head().saved = saved.mutable_data_ptr();
  call.run(*backend, HEED_BACKWARD, device);
  for (size_t i = 0; i < x.size(); ++i) {
    if (is_input(fields_.tensors[i].role) && x[i].defined()) {
      grads[i] = g[i].to(tensors[i].scalar_type());
    }
  }
}

void Engine::step(std::span<Tensor> tensors, const void* options) const {
  const bool wide = is_wide(fields_, tensors);
  std::vector<Tensor> x(tensors.begin(), tensors.end());
  KernelCall call = bind(fields_, x, options, {}, wide);
  // The i-th final state takes the place of the i-th state.
  std::vector<size_t> states, finals;
  for (size_t i = 0; i < x.size(); ++i) {
    if (fields_.tensors[i].role == Role::kState) states.push_back(i);
    if (fields_.tensors[i].role == Role::kFinal) finals.push_back(i);
  }
  for (size_t i = 0; i < finals.size(); ++i) {
    if (x[states[i]].defined()) call.set(finals[i], x[finals[i]] = x[states[i]]);
  }
  const kernel::CallSizes sizes = call.check(HEED_STEP);
  make_outputs(fields_, x, sizes, wide);
  for (size_t i = 0; i < x.size(); ++i) {
    if (fields_.tensors[i].role == Role::kOut) call.set(i, x[i]);
  }
  const at::Device device = device_of(fields_, tensors);
  const heed_backend* backend = nullptr;
  const std::string reasons =
      wide ? "float64 has no kernel" : refusals(*this, device, call.data(), HEED_STEP, &backend);
  if (backend == nullptr) {
    warn(*this, device, reasons);
    const at::NoGradGuard no_grad;
    std::vector<Tensor> y(tensors.begin(), tensors.end());
    for (const size_t i : finals) y[i] = Tensor();
    naive_(y, options);
    x = y;
  } else {
    call.run(*backend, HEED_STEP, device);
  }
  for (size_t i = 0; i < finals.size(); ++i) {
    Tensor& state = tensors[states[i]];
    if (state.defined() && !x[finals[i]].is_same(state)) state.copy_(x[finals[i]]);
  }
  for (size_t i = 0; i < x.size(); ++i) {
    if (fields_.tensors[i].role == Role::kOut) tensors[i] = x[i];
  }
}

}  // namespace heed::op
