#include "op/dispatch.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "io/error.h"
#include "kernel/call/check.h"
#include "op/library.h"
#include "op/parallel.h"
#include "op/view.h"

namespace heed::op {
namespace {

using at::Tensor;
using kernel::CallFields;
using kernel::is_input;
using kernel::OptionField;
using kernel::OptionKind;
using kernel::Role;
using kernel::TensorField;

std::vector<Engine*>& table() {
  static std::vector<Engine*> engines;
  return engines;
}

union Option {
  double number;
  int64_t integer;
};
using Options = std::vector<Option>;

Options options_of(const CallFields& fields, const void* options) {
  Options copy(fields.options.size());
  std::memcpy(copy.data(), options, copy.size() * sizeof(Option));
  return copy;
}

// ---- a call with the memory that its views point into
// ---------------------------------------------------------

class KernelCall {
 public:
  KernelCall(const CallFields& fields, const void* options, const Tensor& cu_seqlens)
      : fields_(fields), bytes_((fields.size + 7) / 8) {
    auto* head = reinterpret_cast<heed_call*>(bytes_.data());
    head->struct_size = static_cast<uint32_t>(fields.size);
    std::memcpy(data() + fields.options_at, options, fields.options.size() * 8);
    if (!cu_seqlens.defined()) return;
    if (cu_seqlens.dim() != 1 || cu_seqlens.scalar_type() != at::kLong || cu_seqlens.numel() < 1) {
      throw UsageError("{}: cu_seqlens must be int64 [N+1]", fields.engine);
    }
    offsets_ = cu_seqlens.to(at::kCPU).contiguous();
    head->cu_seqlens = offsets_.const_data_ptr<int64_t>();
    head->sequences = offsets_.numel() - 1;
  }

  char* data() { return reinterpret_cast<char*>(bytes_.data()); }
  heed_call& head() { return *reinterpret_cast<heed_call*>(bytes_.data()); }
  void set(size_t i, const Tensor& t) { keep(kernel::call_views(fields_, data())[i], t); }
  void set_grad(size_t i, const Tensor& t) { keep(kernel::call_grads(fields_, data())[i], t); }

  kernel::CallSizes check(int32_t pass) {
    kernel::CallSizes sizes;
    heed_message message = {};
    const auto status =
        kernel::check_call(fields_, data(), pass, kernel::CallDtypes::kReference, &sizes, &message);
    if (status != HEED_OK) throw UsageError("{}", message.text);
    return sizes;
  }

  void run(const heed_backend& backend, int32_t pass, const at::Device& device) {
    const heed_parallel pool = torch_parallel();
    const int64_t bytes = backend.workspace(data(), pass, pool.threads);
    const Tensor workspace =
        at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
    heed_message message = {};
    const heed_status status =
        backend.run(data(), pass, workspace.mutable_data_ptr(), nullptr, &pool, &message);
    if (status == HEED_INVALID_ARGUMENT) throw UsageError("{}", message.text);
    if (status != HEED_OK) throw Error("{} on {}: {}", fields_.engine, backend.name, message.text);
  }

 private:
  void keep(heed_view& view, const Tensor& t) {
    if (!t.defined()) return;
    view = view_of(t);
    kept_.push_back(t);
  }

  const CallFields& fields_;
  std::vector<int64_t> bytes_;
  std::vector<Tensor> kept_;
  Tensor offsets_;
};

// As the kernels want the tensor of a field.
Tensor prepared(const Tensor& t, const TensorField& field, bool wide) {
  if (!t.defined()) return t;
  const bool token = field.role == Role::kToken || field.role == Role::kOut;
  const Tensor x = wide || !token ? t.to(wide ? at::kDouble : at::kFloat) : t;
  // A row is the last dimension, or also the one before it: "C,2".
  const std::string_view shape = kernel::shape_of_rank(field.shape, static_cast<int>(t.dim())).text;
  const bool pairs = !shape.empty() && shape.back() >= '0' && shape.back() <= '9' &&
                     !shape.ends_with("-1") && t.dim() > 1 && t.stride(-2) != t.size(-1);
  return pairs || field.role == Role::kState || field.role == Role::kFinal ? x.contiguous()
                                                                           : rows(x);
}

// Whether anything is float64: then there is no kernel.
bool is_wide(const CallFields& fields, std::span<const Tensor> tensors) {
  bool wide = false;
  for (size_t i = 0; i < tensors.size(); ++i) {
    wide |= is_input(fields.tensors[i].role) && tensors[i].defined() &&
            tensors[i].scalar_type() == at::kDouble;
  }
  return wide;
}

at::TensorOptions token_options(const CallFields& fields, std::span<const Tensor> tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (fields.tensors[i].role == Role::kToken && tensors[i].defined()) return tensors[i].options();
  }
  throw UsageError("{}: no token tensor is given", fields.engine);
}

// Empty outputs, those whose sizes are known.
void make_outputs(const CallFields& fields, std::span<Tensor> tensors,
                  const kernel::CallSizes& sizes, bool wide) {
  const at::TensorOptions token = token_options(fields, tensors);
  const auto state = token.dtype(wide ? at::kDouble : at::kFloat);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorField& field = fields.tensors[i];
    if (is_input(field.role) || tensors[i].defined()) continue;
    // An output with alternatives has the rank of the first token tensor.
    kernel::ShapeText text = kernel::first_shape(field.shape);
    if (std::string_view(field.shape).find('|') != std::string_view::npos) {
      for (size_t j = 0; j < tensors.size(); ++j) {
        if (fields.tensors[j].role != Role::kToken) continue;
        const int extra = static_cast<int>(tensors[j].dim()) -
                          kernel::first_shape(fields.tensors[j].shape).rank();
        text = kernel::shape_of_rank(field.shape, text.rank() + extra);
        break;
      }
    }
    std::vector<int64_t> shape;
    text.for_each([&](std::string_view name, int64_t literal) {
      shape.push_back(literal >= 0 ? literal : sizes[name]);
    });
    if (std::find(shape.begin(), shape.end(), -1) != shape.end()) continue;
    tensors[i] = at::empty(
        shape, field.role == Role::kOut ? (wide ? token.dtype(at::kDouble) : token) : state);
  }
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

at::Device device_of(const CallFields& fields, std::span<const Tensor> tensors) {
  return token_options(fields, tensors).device();
}

// The call of `pass` with its inputs as the kernels want them; `tensors` are replaced by them.
KernelCall bind(const CallFields& fields, std::vector<Tensor>& tensors, const void* options,
                const Tensor& cu_seqlens, bool wide) {
  KernelCall call(fields, options, cu_seqlens);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!is_input(fields.tensors[i].role)) continue;
    tensors[i] = prepared(tensors[i], fields.tensors[i], wide);
    call.set(i, tensors[i]);
  }
  return call;
}

size_t count(const CallFields& fields, bool inputs) {
  size_t n = 0;
  for (const TensorField& field : fields.tensors) n += is_input(field.role) == inputs;
  return n;
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

std::vector<BackendAnswer> ask_backends(const Engine& engine,
                                        const std::map<std::string, int64_t>& sizes,
                                        heed_dtype dtype) {
  const CallFields& fields = engine.fields();
  std::set<std::string> unused;
  for (const auto& [name, size] : sizes) unused.insert(name);
  const auto call_of = [&](int32_t pass) {
    std::vector<int64_t> bytes((fields.size + 7) / 8);
    reinterpret_cast<heed_call*>(bytes.data())->struct_size = static_cast<uint32_t>(fields.size);
    for (size_t i = 0; i < fields.tensors.size(); ++i) {
      const TensorField& field = fields.tensors[i];
      heed_view& view = kernel::call_views(fields, bytes.data())[i];
      view.dtype = field.role == Role::kToken || field.role == Role::kOut ? dtype : HEED_FLOAT32;
      static int64_t somewhere;  // backends look at views, not at memory
      view.data = &somewhere;
      kernel::first_shape(field.shape).for_each([&](std::string_view name, int64_t literal) {
        const std::string key(name == "N" ? "B" : name);
        const auto it = sizes.find(key);
        unused.erase(key);
        int64_t size = literal >= 0 ? literal : key == "B" || key == "G" ? 1 : 64;
        if (name.ends_with("-1")) {
          const auto whole = sizes.find(key.substr(0, key.size() - 2));
          size = (whole == sizes.end() ? 64 : whole->second) - 1;
        }
        if (it != sizes.end()) size = it->second;
        if (name == "T" && pass == HEED_STEP) size = 1;
        view.sizes[view.rank++] = size;
      });
      int64_t stride = 1;
      for (int d = view.rank - 1; d >= 0; --d) {
        view.strides[d] = stride;
        stride *= view.sizes[d];
      }
    }
    return bytes;
  };
  constexpr std::pair<const char*, int32_t> kPasses[] = {
      {"forward", HEED_FORWARD}, {"backward", HEED_BACKWARD}, {"step", HEED_STEP}};
  std::vector<BackendAnswer> answers;
  for (const heed_backend* backend : engine.backends()) {
    BackendAnswer answer = {backend, {}};
    for (const auto& [name, pass] : kPasses) {
      const std::vector<int64_t> call = call_of(pass);
      const char* reason = backend->refuses ? backend->refuses(call.data(), pass) : nullptr;
      answer.passes.emplace_back(name, reason ? reason : "");
    }
    answers.push_back(answer);
  }
  if (!unused.empty()) {
    throw UsageError("{}: no tensor has a size {}", fields.engine, *unused.begin());
  }
  return answers;
}

void add_backend(const heed_backend& backend) {
  for (Engine* engine : table()) {
    if (std::string_view(engine->fields().engine) == backend.engine) return engine->add(backend);
  }
  throw Error("backend {} is for the engine {}, which this program does not have", backend.name,
              backend.engine);
}

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

void Engine::run_naive(std::span<Tensor> tensors, const void* options,
                       const Tensor& cu_seqlens) const {
  std::vector<Tensor> x(tensors.begin(), tensors.end());
  bind(fields_, x, options, cu_seqlens, is_wide(fields_, tensors)).check(HEED_FORWARD);
  if (!cu_seqlens.defined()) return naive_(tensors, options);
  by_sequence(tensors, cu_seqlens, [&](std::vector<Tensor>& one) { naive_(one, options); });
}

void Engine::run_steps(std::span<Tensor> tensors, const void* options,
                       const Tensor& cu_seqlens) const {
  const at::NoGradGuard no_grad;
  if (cu_seqlens.defined()) {
    std::vector<Tensor> x(tensors.begin(), tensors.end());
    bind(fields_, x, options, cu_seqlens, is_wide(fields_, tensors)).check(HEED_FORWARD);
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

namespace {

// The backward pass by autograd through the naive form.
void naive_backward(const Engine& engine, std::span<Tensor> tensors, std::span<Tensor> grads,
                    const void* options, const Tensor& cu_seqlens) {
  const CallFields& fields = engine.fields();
  const at::AutoGradMode grad_mode(true);
  std::vector<Tensor> x(tensors.size()), wanted, outputs, incoming;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!is_input(fields.tensors[i].role) || !tensors[i].defined()) continue;
    wanted.push_back(x[i] = tensors[i].detach().requires_grad_());
  }
  engine.run_naive(x, options, cu_seqlens);
  for (size_t i = 0; i < x.size(); ++i) {
    if (is_input(fields.tensors[i].role) || !x[i].defined() || !grads[i].defined()) continue;
    if (x[i].requires_grad())
      outputs.push_back(x[i]), incoming.push_back(grads[i].to(x[i].dtype()));
  }
  std::vector<Tensor> results(wanted.size());
  if (!outputs.empty()) {
    results = torch::autograd::grad(outputs, wanted, incoming, std::nullopt, false, true);
  }
  size_t next = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!is_input(fields.tensors[i].role) || !tensors[i].defined()) continue;
    const Tensor& g = results[next++];
    grads[i] = g.defined() ? g : at::zeros_like(tensors[i]);
  }
}

}  // namespace

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
    return naive_backward(*this, tensors, grads, options, cu_seqlens);
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

// ---- the operators, made of the list
// ---------------------------------------------------------

namespace {

std::string option_schema(const OptionField& o) {
  switch (o.kind) {
    case OptionKind::kNumber:
      return fmt::format("float {}={:#}", o.name, o.value);  // with a point, as schemas want it
    case OptionKind::kInteger:
      return fmt::format("int {}={}", o.name, static_cast<int64_t>(o.value));
    default:
      return fmt::format("bool {}={}", o.name, o.value != 0 ? "True" : "False");
  }
}

enum class Op { kPlain, kForward, kBackward, kStep };

// A state of a step is named without "initial_".
std::string_view step_name(std::string_view name) {
  return name.starts_with("initial_") ? name.substr(8) : name;
}

std::string schema(const CallFields& fields, Op op) {
  constexpr const char* kSuffix[] = {"", "_forward", "_backward", "_step"};
  std::string text = fmt::format("{}{}(", fields.engine, kSuffix[static_cast<int>(op)]);
  std::vector<std::string> plain, named, outs;
  if (op == Op::kBackward) {
    for (const auto& field : fields.tensors) {
      if (!is_input(field.role)) plain.push_back(fmt::format("Tensor? grad_{}", field.name));
    }
    plain.push_back("Tensor? saved");
  }
  char alias = 'a';
  for (const auto& field : fields.tensors) {
    const bool state = field.role == Role::kState;
    if (!is_input(field.role)) {
      if (op != Op::kBackward && (op != Op::kStep || field.role == Role::kOut)) {
        outs.push_back(fmt::format("Tensor {}", field.name));
      }
    } else if (op == Op::kStep && state) {
      plain.push_back(fmt::format("Tensor({}!) {}", alias++, step_name(field.name)));
    } else if (field.required) {
      plain.push_back(fmt::format("Tensor {}", field.name));
    } else {
      named.push_back(fmt::format("Tensor? {}=None", field.name));
    }
    if (op == Op::kBackward && is_input(field.role)) outs.push_back("Tensor");
  }
  if (op == Op::kForward) outs.push_back("Tensor saved");
  if (op != Op::kStep) named.push_back("Tensor? cu_seqlens=None");
  for (const auto& option : fields.options) named.push_back(option_schema(option));
  text += fmt::format("{}", fmt::join(plain, ", "));
  if (!named.empty()) text += fmt::format(", *, {}", fmt::join(named, ", "));
  return text + fmt::format(") -> ({})", fmt::join(outs, ", "));
}

const Engine& engine_of(const c10::OperatorHandle& op) {
  std::string_view name = op.operator_name().name;  // heed::NAME_backward
  name.remove_prefix(6);
  for (const char* suffix : {"_forward", "_backward", "_step"}) {
    if (name.ends_with(suffix)) name.remove_suffix(std::string_view(suffix).size());
  }
  for (const Engine* engine : table()) {
    if (name == engine->fields().engine) return *engine;
  }
  throw Error("operator {} belongs to no engine", op.operator_name().name);
}

// The arguments of one operator, from the dispatcher's stack.
struct Arguments {
  std::vector<Tensor> tensors, grads;  // in the order of the list
  Tensor saved, cu_seqlens;
  Options options;
};

Tensor tensor_of(const c10::IValue& value) { return value.isNone() ? Tensor() : value.toTensor(); }

Arguments pop_arguments(const c10::OperatorHandle& op, const CallFields& fields,
                        torch::jit::Stack* stack) {
  const auto& names = op.schema().arguments();
  const auto values = torch::jit::last(*stack, names.size());
  Arguments a;
  a.tensors.resize(fields.tensors.size());
  a.grads.resize(fields.tensors.size());
  a.options.resize(fields.options.size());
  const bool is_step = op.operator_name().name.ends_with("_step");
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string& name = names[i].name();
    const auto plain =
        std::find_if(fields.tensors.begin(), fields.tensors.end(), [&](const TensorField& field) {
          return (is_step && field.role == Role::kState ? step_name(field.name) : field.name) ==
                 name;
        });
    const auto option = std::find_if(fields.options.begin(), fields.options.end(),
                                     [&](const OptionField& o) { return o.name == name; });
    if (name == "saved") {
      a.saved = tensor_of(values[i]);
    } else if (name == "cu_seqlens") {
      a.cu_seqlens = tensor_of(values[i]);
    } else if (plain != fields.tensors.end()) {
      a.tensors[plain - fields.tensors.begin()] = tensor_of(values[i]);
    } else if (option != fields.options.end()) {
      Option& o = a.options[option - fields.options.begin()];
      if (option->kind == OptionKind::kNumber) o.number = values[i].toDouble();
      if (option->kind == OptionKind::kInteger) o.integer = values[i].toInt();
      if (option->kind == OptionKind::kFlag) o.integer = values[i].toBool();
    } else {
      a.grads[fields.find(std::string_view(name).substr(5))] = tensor_of(values[i]);
    }
  }
  torch::jit::drop(*stack, names.size());
  return a;
}

torch::jit::Stack push_arguments(const c10::OperatorHandle& op, const CallFields& fields,
                                 const Arguments& a) {
  torch::jit::Stack stack;
  const auto value = [](const Tensor& t) { return t.defined() ? c10::IValue(t) : c10::IValue(); };
  for (const auto& argument : op.schema().arguments()) {
    const std::string& name = argument.name();
    if (name == "saved") {
      stack.push_back(value(a.saved));
    } else if (name == "cu_seqlens") {
      stack.push_back(value(a.cu_seqlens));
    } else if (const int i = fields.find(name); i >= 0) {
      stack.push_back(value(a.tensors[i]));
    } else if (name.starts_with("grad_") && fields.find(std::string_view(name).substr(5)) >= 0) {
      stack.push_back(value(a.grads[fields.find(std::string_view(name).substr(5))]));
    } else {
      for (size_t o = 0; o < fields.options.size(); ++o) {
        if (name != fields.options[o].name) continue;
        const Option& option = a.options[o];
        switch (fields.options[o].kind) {
          case OptionKind::kNumber:
            stack.emplace_back(option.number);
            break;
          case OptionKind::kInteger:
            stack.emplace_back(option.integer);
            break;
          default:
            stack.emplace_back(option.integer != 0);
        }
      }
    }
  }
  return stack;
}

// Outputs of an operator are tensors, undefined where the call has none.
void push_outputs(const CallFields& fields, const Arguments& a, bool finals, bool saved,
                  torch::jit::Stack* stack) {
  for (size_t i = 0; i < fields.tensors.size(); ++i) {
    const Role role = fields.tensors[i].role;
    if (role == Role::kOut || (finals && role == Role::kFinal)) stack->emplace_back(a.tensors[i]);
  }
  if (saved) stack->emplace_back(a.saved);
}

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

std::vector<Tensor> inputs_of(const CallFields& fields, std::span<const Tensor> tensors) {
  return {tensors.begin(), tensors.begin() + static_cast<int64_t>(count(fields, true))};
}

void differentiable(const Engine& engine, std::span<Tensor> tensors, const Options& options,
                    const Tensor& cu_seqlens) {
  const CallFields& fields = engine.fields();
  // Autograd takes no input that is not there: those that are, and which they are.
  std::vector<Tensor> given;
  std::vector<bool> present, absent;
  for (const Tensor& input : inputs_of(fields, tensors)) {
    present.push_back(input.defined());
    if (input.defined()) given.push_back(input);
  }
  std::optional<Tensor> packs;
  if (cu_seqlens.defined()) packs = cu_seqlens;
  const auto outputs =
      EngineFunction::apply(at::TensorList(given), &engine, options, packs, present, &absent);
  size_t next = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (is_input(fields.tensors[i].role)) continue;
    tensors[i] = absent[next] ? Tensor() : outputs[next];
    ++next;
  }
}

using Boxed = void (*)(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack*);

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
  differentiable(engine, a.tensors, a.options, a.cu_seqlens);
  push_outputs(engine.fields(), a, true, false, stack);
}

void backward_kernel(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const Engine& engine = engine_of(op);
  const CallFields& fields = engine.fields();
  Arguments a = pop_arguments(op, fields, stack);
  engine.run_backward(a.tensors, a.grads, a.options.data(), a.cu_seqlens, a.saved);
  for (size_t i = 0; i < fields.tensors.size(); ++i) {
    if (is_input(fields.tensors[i].role)) stack->emplace_back(a.grads[i]);
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
      if (!is_input(fields.tensors[i].role)) continue;
      stack->emplace_back(a.tensors[i].defined() ? at::empty_like(a.tensors[i]) : Tensor());
    }
    return;
  }
  std::map<std::string_view, c10::SymInt> sizes;
  int extra = 0;
  for (size_t i = a.tensors.size(); i-- > 0;) {
    const TensorField& field = fields.tensors[i];
    if (!is_input(field.role) || !a.tensors[i].defined()) continue;
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

void Engine::forward(std::span<Tensor> tensors, const void* options,
                     const Tensor& cu_seqlens) const {
  bool grad = false;
  for (const Tensor& t : tensors) grad |= t.defined() && t.requires_grad();
  if (!grad || !at::GradMode::is_enabled()) {
    return run_forward(tensors, options, cu_seqlens, nullptr);
  }
  link_library();
  differentiable(*this, tensors, options_of(fields_, options), cu_seqlens);
}

}  // namespace heed::op
