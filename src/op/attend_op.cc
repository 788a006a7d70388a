// The operator torch.ops.heed.attend: its schema from one list of fields, dispatch, autograd.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "io/error.h"
#include "op/attend_backends.h"
#include "op/attend_shape.h"
#include "op/library.h"

namespace heed::op {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;
using torch::jit::Stack;

// ---- the options as arguments of the operator -----------------------------------------------

// Calls f(declaration, field) for every option: the schema, reading and writing of a call come from
// this list alone.
template <class Options, class F>
void for_each_field(Options& o, F&& f) {
  f("Tensor? key_bias=None", o.key_bias);
  f("Tensor? q_bias=None", o.q_bias);
  f("Tensor? alibi_slopes=None", o.alibi_slopes);
  f("Tensor? relative_bias=None", o.relative_bias);
  f("Tensor? relative_scale=None", o.relative_scale);
  f("Tensor? cu_seqlens_q=None", o.cu_seqlens_q);
  f("Tensor? cu_seqlens_k=None", o.cu_seqlens_k);
  f("Tensor? head_window=None", o.head_window);
  f("Tensor? head_sinks=None", o.head_sinks);
  f("Tensor? block_start=None", o.block_start);
  f("Tensor? block_index=None", o.block_index);
  f("int q_block=0", o.q_block);
  f("int k_block=0", o.k_block);
  f("bool any=False", o.any);
  f("int[] axes=[]", o.axes);  // length, window, stride, causal of each axis
  f("bool causal=False", o.causal);
  f("float? scale=None", o.scale);
  f("int window=0", o.window);
  f("int sinks=0", o.sinks);
  f("float soft_cap=0.", o.soft_cap);
  f("str weight=\"softmax\"", o.weight);
  f("float? bias=None", o.bias);
}

void read(const c10::IValue& from, at::Tensor& to) {
  to = from.isNone() ? at::Tensor() : from.toTensor();
}
void read(const c10::IValue& from, int64_t& to) { to = from.toInt(); }
void read(const c10::IValue& from, bool& to) { to = from.toBool(); }
void read(const c10::IValue& from, double& to) { to = from.toDouble(); }
void read(const c10::IValue& from, std::optional<double>& to) {
  to = from.isNone() ? std::nullopt : std::optional<double>(from.toDouble());
}
void read(const c10::IValue& from, kernel::Weight& to) {
  const std::string& name = from.toStringRef();
  for (int32_t i = 0; i < kernel::kWeights; ++i) {
    if (name != kernel::kWeightNames[i]) continue;
    to = static_cast<kernel::Weight>(i);
    return;
  }
  throw UsageError("attend: unknown weight '{}'", name);
}
void read(const c10::IValue& from, std::vector<kernel::Axis>& to) {
  const std::vector<int64_t> flat = from.toIntVector();
  if (flat.size() % 4 != 0) {
    throw UsageError("attend: axes has {} numbers, expected length, window, stride, causal of each",
                     flat.size());
  }
  for (size_t i = 0; i < flat.size(); i += 4) {
    to.push_back({flat[i], flat[i + 1], flat[i + 2], flat[i + 3] != 0});
  }
}

template <class T>
c10::IValue value_of(const T& x) {
  return c10::IValue(x);
}
c10::IValue value_of(const at::Tensor& x) { return x.defined() ? c10::IValue(x) : c10::IValue(); }
c10::IValue value_of(const kernel::Weight& x) {
  return c10::IValue(kernel::kWeightNames[static_cast<int32_t>(x)]);
}
c10::IValue value_of(const std::vector<kernel::Axis>& x) {
  std::vector<int64_t> flat;
  for (const kernel::Axis& a : x) {
    flat.insert(flat.end(), {a.length, a.window, a.stride, a.causal ? 1 : 0});
  }
  return c10::IValue(flat);
}

std::string declarations() {
  AttendOptions o;
  std::string all;
  for_each_field(o, [&](const char* declaration, auto&) {
    all += all.empty() ? "" : ", ";
    all += declaration;
  });
  return all;
}

// Takes `tensors` tensors (undefined where None) and the options off the stack.
std::vector<at::Tensor> take_arguments(Stack& stack, size_t tensors, AttendOptions& o) {
  size_t fields = 0;
  for_each_field(o, [&](const char*, auto&) { ++fields; });
  const auto arguments = torch::jit::last(stack, tensors + fields);
  std::vector<at::Tensor> result(tensors);
  for (size_t i = 0; i < tensors; ++i) read(arguments[i], result[i]);
  size_t next = tensors;
  for_each_field(o, [&](const char*, auto& field) { read(arguments[next++], field); });
  torch::jit::drop(stack, tensors + fields);
  return result;
}

Stack arguments_of(std::initializer_list<at::Tensor> tensors, const AttendOptions& o) {
  Stack stack;
  for (const at::Tensor& t : tensors) stack.push_back(value_of(t));
  for_each_field(o, [&](const char*, const auto& field) { stack.push_back(value_of(field)); });
  return stack;
}

void call(const char* name, Stack& stack) {
  link_library();
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&stack);
}

// ---- autograd ---------------------------------------------------------------------------------

struct OptionsHolder : torch::CustomClassHolder {
  explicit OptionsHolder(const AttendOptions& o) : options(o) {}
  AttendOptions options;
};

class AttendFunction : public torch::autograd::Function<AttendFunction> {
 public:
  // Five tensors that options hold too: autograd must see them.
  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
      const at::Tensor& v, const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
      const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
      const std::optional<at::Tensor>&, const AttendOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    Stack stack = arguments_of({q, k, v}, options);
    call("heed::attend", stack);
    const at::Tensor out = stack[0].toTensor(), lse = stack[1].toTensor();
    std::vector<at::Tensor> saved = {q, k, v, out, lse};
    for (const AttendExtra& extra : kAttendExtras) saved.push_back(options.*extra.input);
    ctx->save_for_backward(saved);
    keep_options(ctx, options);
    ctx->set_materialize_grads(false);
    if (!kernel::normalised(options.weight)) ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    AttendOptions options = kept_options(ctx);
    for (size_t i = 0; i < std::size(kAttendExtras); ++i) {
      options.*kAttendExtras[i].input = saved[5 + i];
    }
    torch::autograd::variable_list result(9);  // the last one is the options'
    if (!grads[0].defined() && !grads[1].defined()) return result;
    const at::AutoDispatchBelowADInplaceOrView guard;
    Stack stack = arguments_of(
        {grads[0], grads[1], saved[0], saved[1], saved[2], saved[3], saved[4]}, options);
    call("heed::attend_backward", stack);
    for (size_t i = 0; i < stack.size(); ++i) read(stack[i], result[i]);
    return result;
  }
};

Pair attend_autograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttendOptions& o) {
  if (q.is_cuda()) return attend_cuda(q, k, v, o);
  const auto result = AttendFunction::apply(q, k, v, or_none(o.key_bias), or_none(o.q_bias),
                                            or_none(o.alibi_slopes), or_none(o.relative_bias),
                                            or_none(o.relative_scale), o);
  return {result[0], result[1]};
}

Pair attend_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const AttendOptions& o) {
  auto sizes = q.sym_sizes().vec();
  sizes.back() = v.sym_size(-1);
  const at::Tensor out = at::empty_symint(sizes, q.options());
  sizes.pop_back();
  const auto lse = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return {out, at::empty_symint(sizes, q.options().dtype(lse))};
}

AttendGrads attend_backward_meta(const at::Tensor&, const at::Tensor&, const at::Tensor& q,
                                 const at::Tensor& k, const at::Tensor& v, const at::Tensor&,
                                 const at::Tensor&, const AttendOptions& o) {
  AttendGrads g;
  g.q = at::empty_like(q), g.k = at::empty_like(k), g.v = at::empty_like(v);
  for (const AttendExtra& extra : kAttendExtras) {
    const at::Tensor& input = o.*extra.input;
    if (input.defined()) g.*extra.grad = at::empty_like(input);
  }
  return g;
}

AttendGrads attend_backward_cuda(const at::Tensor& grad_out, const at::Tensor& grad_lse,
                                 const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor&, const at::Tensor&, const AttendOptions& o) {
  return attend_backward_naive(grad_out, grad_lse, q, k, v, o);
}

// The operators for one dispatch key.
template <Pair (*kForward)(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const AttendOptions&)>
void forward_op(const c10::OperatorHandle&, Stack* stack) {
  AttendOptions o;
  const auto t = take_arguments(*stack, 3, o);
  const auto [out, lse] = kForward(t[0], t[1], t[2], o);
  torch::jit::push(*stack, out, lse);
}

template <AttendGrads (*kBackward)(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                   const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                   const at::Tensor&, const AttendOptions&)>
void backward_op(const c10::OperatorHandle&, Stack* stack) {
  AttendOptions o;
  const auto t = take_arguments(*stack, 7, o);
  const AttendGrads g = kBackward(t[0], t[1], t[2], t[3], t[4], t[5], t[6], o);
  torch::jit::push(*stack, g.q, g.k, g.v);
  for (const AttendExtra& extra : kAttendExtras) stack->push_back(value_of(g.*extra.grad));
}

template <c10::BoxedKernel::BoxedKernelFunction* kFunction>
void implement(torch::Library& library, const char* name, c10::DispatchKey key) {
  library.impl(name, torch::dispatch(key, torch::CppFunction::makeFromBoxedFunction<kFunction>()));
}

}  // namespace

void keep_options(torch::autograd::AutogradContext* ctx, const AttendOptions& options) {
  AttendOptions kept = options;
  for (const AttendExtra& extra : kAttendExtras) kept.*extra.input = at::Tensor();
  ctx->saved_data["options"] = c10::IValue::make_capsule(c10::make_intrusive<OptionsHolder>(kept));
}

AttendOptions kept_options(torch::autograd::AutogradContext* ctx) {
  const auto holder = ctx->saved_data["options"].toCapsule();
  return static_cast<OptionsHolder*>(holder.get())->options;
}

void register_attend(torch::Library& library) {
  const std::string options = declarations();
  library.def(torch::schema(
      fmt::format("attend(Tensor q, Tensor k, Tensor v, *, {}) -> (Tensor out, Tensor lse)",
                  options)
          .c_str()));
  library.def(torch::schema(
      fmt::format("attend_backward(Tensor? grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor "
                  "v, Tensor out, Tensor lse, *, {}) -> (Tensor, Tensor, Tensor, Tensor?, Tensor?, "
                  "Tensor?, Tensor?, Tensor?)",
                  options)
          .c_str()));
  using c10::DispatchKey;
  implement<forward_op<attend_cpu>>(library, "attend", DispatchKey::CPU);
  implement<forward_op<attend_cuda>>(library, "attend", DispatchKey::CUDA);
  implement<forward_op<attend_meta>>(library, "attend", DispatchKey::Meta);
  implement<forward_op<attend_autograd>>(library, "attend", DispatchKey::Autograd);
  implement<backward_op<attend_backward_cpu>>(library, "attend_backward", DispatchKey::CPU);
  implement<backward_op<attend_backward_cuda>>(library, "attend_backward", DispatchKey::CUDA);
  implement<backward_op<attend_backward_meta>>(library, "attend_backward", DispatchKey::Meta);
}

Pair attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
            const AttendOptions& options) {
  if (q.is_cuda()) return attend_cuda(q, k, v, options);
  bool grad = q.requires_grad() || k.requires_grad() || v.requires_grad();
  for (const AttendExtra& extra : kAttendExtras) {
    const at::Tensor& input = options.*extra.input;
    grad = grad || (input.defined() && input.requires_grad());
  }
  if (!grad || !at::GradMode::is_enabled()) return attend_cpu(q, k, v, options);
  check_attend(q, k, v, options);
  return attend_autograd(q, k, v, options);
}

}  // namespace heed::op
