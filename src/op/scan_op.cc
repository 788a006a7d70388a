// The operator torch.ops.heed.scan: the kernel over tensors, autograd, and the naive chunked form
// on CUDA.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "io/error.h"
#include "op/library.h"
#include "op/parallel.h"
#include "op/scan_shape.h"
#include "op/view.h"

namespace heed::op {
namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;
using Pair = std::tuple<Tensor, Tensor>;
// q, k, v, p, r, beta, log_decay, bonus, initial_state
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The kernel's arguments, with the tensors that they point into.
struct Call {
  Tensor q, k, v;
  ScanInputs in;
  std::vector<int64_t> offsets;
  kernel::ScanArgs args;

  Call(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const ScanInputs& inputs,
       const ScanOptions& options, const ScanShape& s)
      : q(token(q_in)), k(token(k_in)), v(token(v_in)), in(inputs), offsets(s.offset) {
    in.p = token(in.p);
    in.r = token(in.r);
    const auto gate = [](const Tensor& t) { return t.defined() ? rows(t.to(at::kFloat)) : t; };
    in.beta = gate(in.beta);
    in.log_decay = gate(in.log_decay);
    if (in.bonus.defined()) in.bonus = in.bonus.to(at::kFloat).contiguous();
    if (in.initial_state.defined()) {
      in.initial_state = in.initial_state.to(at::kFloat).contiguous();
    }
    args.q = view_of(q);
    args.k = view_of(k);
    args.v = view_of(v);
    args.p = view_of(in.p);
    args.r = view_of(in.r);
    args.beta = view_of(in.beta);
    args.log_decay = view_of(in.log_decay);
    args.bonus = view_of(in.bonus);
    args.initial_state = view_of(in.initial_state);
    args.decay = s.decay;
    args.correction = s.correction;
    args.read = options.read_before ? kernel::Read::kBefore : kernel::Read::kAfter;
    args.scale = static_cast<float>(options.scale);
    args.chunk = static_cast<int32_t>(options.chunk);
    if (s.packed) {
      args.cu_seqlens = offsets.data();
      args.sequences = s.sequences;
    }
  }

  // The kernels read float32 and bfloat16.
  static Tensor token(const Tensor& t) {
    if (!t.defined()) return t;
    return rows(t.scalar_type() == at::kHalf ? t.to(at::kFloat) : t);
  }
};

Pair scan_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& in,
              const ScanOptions& options) {
  const ScanShape s = check_scan(q, k, v, in, options);
  if (q.scalar_type() == at::kDouble) {
    warn_naive("scan", "float64 has no kernel");
    return scan_naive(q, k, v, in, options);
  }
  Call call(q, k, v, in, options, s);
  Tensor out = at::empty(call.v.sizes(), call.v.options());
  Tensor state =
      at::empty({s.sequences, s.heads, s.key_dim, s.value_dim}, call.v.options().dtype(at::kFloat));
  call.args.out = view_of(out);
  call.args.final_state = view_of(state);
  if (state.numel() == 0) return {out.to(v.scalar_type()), state};
  if (out.numel() == 0) {
    if (in.initial_state.defined()) {
      state.copy_(in.initial_state);
    } else {
      state.zero_();
    }
    return {out.to(v.scalar_type()), state};
  }
  const heed_parallel pool = torch_parallel();
  const heed_status status = kernel::scan_forward(call.args, &pool);
  if (status == HEED_UNSUPPORTED) {
    warn_naive("scan",
               fmt::format("the kernel does not take K = {}, V = {}", s.key_dim, s.value_dim));
    return scan_chunked_naive(q, k, v, in, options);
  }
  check_status(status, "scan");
  return {out.to(v.scalar_type()), state};
}

Grads scan_backward_naive(const Tensor& grad_out, const Tensor& grad_state, const Tensor& q,
                          const Tensor& k, const Tensor& v, const ScanInputs& in,
                          const ScanOptions& options) {
  const at::AutoGradMode grad_mode(true);
  std::array<Tensor, 9> x = {
      q, k, v, in.p, in.r, in.beta, in.log_decay, in.bonus, in.initial_state};
  std::vector<Tensor> wanted;
  for (Tensor& t : x) {
    if (t.defined()) wanted.push_back(t = t.detach().requires_grad_());
  }
  const ScanInputs inputs = {x[3], x[4], x[5], x[6], x[7], x[8], in.cu_seqlens};
  const auto [out, state] = q.scalar_type() == at::kDouble
                                ? scan_naive(x[0], x[1], x[2], inputs, options)
                                : scan_chunked_naive(x[0], x[1], x[2], inputs, options);
  std::vector<Tensor> outputs, grad_outputs;
  if (out.requires_grad()) outputs.push_back(out), grad_outputs.push_back(grad_out);
  if (state.requires_grad() && grad_state.defined()) {
    outputs.push_back(state), grad_outputs.push_back(grad_state);
  }
  std::vector<Tensor> grads(wanted.size());
  if (!outputs.empty()) {
    grads = torch::autograd::grad(outputs, wanted, grad_outputs, std::nullopt, false, true);
  }
  std::array<Tensor, 9> g;
  size_t next = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!x[i].defined()) continue;
    g[i] = grads[next].defined() ? grads[next] : at::zeros_like(x[i]);
    ++next;
  }
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8]};
}

Grads scan_backward_cpu(const Tensor& grad_out, const Tensor& grad_state, const Tensor& q,
                        const Tensor& k, const Tensor& v, const ScanInputs& in,
                        const ScanOptions& options) {
  const ScanShape s = check_scan(q, k, v, in, options);
  if (q.scalar_type() == at::kDouble || v.numel() == 0) {
    return scan_backward_naive(grad_out, grad_state, q, k, v, in, options);
  }
  Call call(q, k, v, in, options, s);
  const Tensor go = grad_out.to(call.v.scalar_type()).contiguous();
  const Tensor gs = grad_state.defined() ? grad_state.to(at::kFloat).contiguous() : grad_state;
  kernel::ScanGrads grads;
  grads.grad_out = view_of(go);
  grads.grad_final_state = view_of(gs);
  const std::array<Tensor, 9> x = {
      q, k, v, in.p, in.r, in.beta, in.log_decay, in.bonus, in.initial_state};
  const std::array<heed_view*, 9> views = {
      &grads.grad_q,         &grads.grad_k,     &grads.grad_v,
      &grads.grad_p,         &grads.grad_r,     &grads.grad_beta,
      &grads.grad_log_decay, &grads.grad_bonus, &grads.grad_initial_state};
  std::array<Tensor, 9> g;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!x[i].defined()) continue;
    g[i] = at::empty(x[i].sizes(), x[i].options().dtype(at::kFloat));  // all of it is written
    *views[i] = view_of(g[i]);
  }
  const heed_parallel pool = torch_parallel();
  const heed_status status = kernel::scan_backward(call.args, grads, &pool);
  if (status == HEED_UNSUPPORTED) {
    return scan_backward_naive(grad_out, grad_state, q, k, v, in, options);
  }
  check_status(status, "scan backward");
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i].defined()) g[i] = g[i].to(x[i].scalar_type());
  }
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8]};
}

Pair scan_cuda(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& in,
               const ScanOptions& options) {
  warn_naive("scan on CUDA", "it has no kernel there yet");
  if (q.scalar_type() == at::kDouble) return scan_naive(q, k, v, in, options);
  return scan_chunked_naive(q, k, v, in, options);
}

Pair scan_meta(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& in,
               const ScanOptions& options) {
  const auto states =
      in.cu_seqlens.defined() ? in.cu_seqlens.sym_size(0) - 1 : c10::SymInt(q.sym_size(0));
  const auto compute = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return {at::empty_like(v), at::empty_symint({states, q.sym_size(2), q.sym_size(3), v.sym_size(3)},
                                              v.options().dtype(compute))};
}

Grads scan_backward_meta(const Tensor& grad_out, const Tensor& grad_state, const Tensor& q,
                         const Tensor& k, const Tensor& v, const ScanInputs& in,
                         const ScanOptions& options) {
  const auto like = [](const Tensor& t) { return t.defined() ? at::empty_like(t) : t; };
  return {like(q),
          like(k),
          like(v),
          like(in.p),
          like(in.r),
          like(in.beta),
          like(in.log_decay),
          like(in.bonus),
          like(in.initial_state)};
}

// ---- the operator: inputs as plain arguments
// ---------------------------------------------------------

constexpr const char* kArguments =
    "Tensor? p=None, Tensor? r=None, Tensor? beta=None, Tensor? log_decay=None, Tensor? "
    "bonus=None, Tensor? initial_state=None, Tensor? cu_seqlens=None, float scale=1., bool "
    "read_before=False, int chunk=64";

ScanInputs gather(const OptTensor& p, const OptTensor& r, const OptTensor& beta,
                  const OptTensor& log_decay, const OptTensor& bonus,
                  const OptTensor& initial_state, const OptTensor& cu_seqlens) {
  return {or_undefined(p),         or_undefined(r),     or_undefined(beta),
          or_undefined(log_decay), or_undefined(bonus), or_undefined(initial_state),
          or_undefined(cu_seqlens)};
}

template <Pair (*kForward)(const Tensor&, const Tensor&, const Tensor&, const ScanInputs&,
                           const ScanOptions&)>
Pair forward_op(const Tensor& q, const Tensor& k, const Tensor& v, const OptTensor& p,
                const OptTensor& r, const OptTensor& beta, const OptTensor& log_decay,
                const OptTensor& bonus, const OptTensor& initial_state, const OptTensor& cu_seqlens,
                double scale, bool read_before, int64_t chunk) {
  return kForward(q, k, v, gather(p, r, beta, log_decay, bonus, initial_state, cu_seqlens),
                  {scale, read_before, chunk});
}

template <Grads (*kBackward)(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                             const Tensor&, const ScanInputs&, const ScanOptions&)>
Grads backward_op(const Tensor& grad_out, const Tensor& grad_state, const Tensor& q,
                  const Tensor& k, const Tensor& v, const OptTensor& p, const OptTensor& r,
                  const OptTensor& beta, const OptTensor& log_decay, const OptTensor& bonus,
                  const OptTensor& initial_state, const OptTensor& cu_seqlens, double scale,
                  bool read_before, int64_t chunk) {
  return kBackward(grad_out, grad_state, q, k, v,
                   gather(p, r, beta, log_decay, bonus, initial_state, cu_seqlens),
                   {scale, read_before, chunk});
}

Tensor step_op(const Tensor& q, const Tensor& k, const Tensor& v, Tensor& state, const OptTensor& p,
               const OptTensor& r, const OptTensor& beta, const OptTensor& log_decay,
               const OptTensor& bonus, double scale, bool read_before) {
  return scan_step(q, k, v, gather(p, r, beta, log_decay, bonus, {}, {}), {scale, read_before, 64},
                   state);
}

template <typename F>
auto with_arguments(const ScanInputs& in, const ScanOptions& options, F&& f) {
  return f(or_none(in.p), or_none(in.r), or_none(in.beta), or_none(in.log_decay), or_none(in.bonus),
           or_none(in.initial_state), or_none(in.cu_seqlens), options.scale, options.read_before,
           options.chunk);
}

using ForwardOp = decltype(forward_op<scan_cpu>);
using BackwardOp = decltype(backward_op<scan_backward_cpu>);

class ScanFunction : public torch::autograd::Function<ScanFunction> {
 public:
  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
      const OptTensor& p, const OptTensor& r, const OptTensor& beta, const OptTensor& log_decay,
      const OptTensor& bonus, const OptTensor& initial_state, const OptTensor& cu_seqlens,
      const ScanOptions& options) {
    link_library();
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("heed::scan", "").typed<ForwardOp>();
    const at::AutoDispatchBelowADInplaceOrView guard;
    const ScanInputs in = gather(p, r, beta, log_decay, bonus, initial_state, cu_seqlens);
    const auto [out, state] =
        with_arguments(in, options, [&](const auto&... rest) { return op.call(q, k, v, rest...); });
    ctx->save_for_backward(
        {q, k, v, in.p, in.r, in.beta, in.log_decay, in.bonus, in.initial_state, in.cu_seqlens});
    ctx->saved_data["scale"] = options.scale;
    ctx->saved_data["read_before"] = options.read_before;
    ctx->saved_data["chunk"] = options.chunk;
    return {out, state};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("heed::scan_backward", "")
                               .typed<BackwardOp>();
    const auto x = ctx->get_saved_variables();
    const ScanInputs in = {x[3], x[4], x[5], x[6], x[7], x[8], x[9]};
    const ScanOptions options = {ctx->saved_data["scale"].toDouble(),
                                 ctx->saved_data["read_before"].toBool(),
                                 ctx->saved_data["chunk"].toInt()};
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto g = with_arguments(in, options, [&](const auto&... rest) {
      return op.call(grads[0], grads[1], x[0], x[1], x[2], rest...);
    });
    return {std::get<0>(g), std::get<1>(g), std::get<2>(g), std::get<3>(g),
            std::get<4>(g), std::get<5>(g), std::get<6>(g), std::get<7>(g),
            std::get<8>(g), Tensor(),       Tensor()};
  }
};

Pair scan_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& in,
                   const ScanOptions& options) {
  if (q.is_cuda()) return scan_cuda(q, k, v, in, options);
  const auto result = ScanFunction::apply(
      q, k, v, or_none(in.p), or_none(in.r), or_none(in.beta), or_none(in.log_decay),
      or_none(in.bonus), or_none(in.initial_state), or_none(in.cu_seqlens), options);
  return {result[0], result[1]};
}

Grads scan_backward_cuda(const Tensor& grad_out, const Tensor& grad_state, const Tensor& q,
                         const Tensor& k, const Tensor& v, const ScanInputs& in,
                         const ScanOptions& options) {
  return scan_backward_naive(grad_out, grad_state, q, k, v, in, options);
}

Tensor step_meta(const Tensor& q, const Tensor& k, const Tensor& v, Tensor& /*state*/,
                 const OptTensor& p, const OptTensor& r, const OptTensor& beta,
                 const OptTensor& log_decay, const OptTensor& bonus, double scale,
                 bool read_before) {
  return at::empty_like(v);
}

}  // namespace

void register_scan(torch::Library& library) {
  const std::string forward = fmt::format(
      "scan(Tensor q, Tensor k, Tensor v, *, {}) -> (Tensor out, Tensor final_state)", kArguments);
  const std::string backward = fmt::format(
      "scan_backward(Tensor grad_out, Tensor grad_final_state, Tensor q, Tensor k, Tensor v, *, "
      "{}) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      kArguments);
  library.def(torch::schema(forward.c_str()));
  library.def(torch::schema(backward.c_str()));
  library.def(
      "scan_step(Tensor q, Tensor k, Tensor v, Tensor(a!) state, *, Tensor? p=None, Tensor? "
      "r=None, "
      "Tensor? beta=None, Tensor? log_decay=None, Tensor? bonus=None, float scale=1., bool "
      "read_before=False) -> Tensor");
  using c10::DispatchKey;
  library.impl("scan", torch::dispatch(DispatchKey::CPU, TORCH_FN(forward_op<scan_cpu>)));
  library.impl("scan", torch::dispatch(DispatchKey::CUDA, TORCH_FN(forward_op<scan_cuda>)));
  library.impl("scan", torch::dispatch(DispatchKey::Meta, TORCH_FN(forward_op<scan_meta>)));
  library.impl("scan", torch::dispatch(DispatchKey::Autograd, TORCH_FN(forward_op<scan_autograd>)));
  library.impl("scan_backward",
               torch::dispatch(DispatchKey::CPU, TORCH_FN(backward_op<scan_backward_cpu>)));
  library.impl("scan_backward",
               torch::dispatch(DispatchKey::CUDA, TORCH_FN(backward_op<scan_backward_cuda>)));
  library.impl("scan_backward",
               torch::dispatch(DispatchKey::Meta, TORCH_FN(backward_op<scan_backward_meta>)));
  library.impl("scan_step", torch::dispatch(DispatchKey::CPU, TORCH_FN(step_op)));
  library.impl("scan_step", torch::dispatch(DispatchKey::CUDA, TORCH_FN(step_op)));
  library.impl("scan_step", torch::dispatch(DispatchKey::Meta, TORCH_FN(step_meta)));
}

std::tuple<Tensor, Tensor> scan(const Tensor& q, const Tensor& k, const Tensor& v,
                                const ScanInputs& in, const ScanOptions& options) {
  if (q.is_cuda()) return scan_cuda(q, k, v, in, options);
  bool grad = false;
  for (const Tensor* t :
       {&q, &k, &v, &in.p, &in.r, &in.beta, &in.log_decay, &in.bonus, &in.initial_state}) {
    grad |= t->defined() && t->requires_grad();
  }
  if (!grad || !at::GradMode::is_enabled()) return scan_cpu(q, k, v, in, options);
  check_scan(q, k, v, in, options);
  return scan_autograd(q, k, v, in, options);
}

Tensor scan_step(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& inputs,
                 const ScanOptions& options, Tensor& state) {
  ScanInputs in = inputs;
  in.cu_seqlens = Tensor();
  in.initial_state = state;
  const ScanShape s = check_scan(q, k, v, in, options);
  if (s.tokens != 1) throw UsageError("scan_step: q has {} tokens, expected 1", s.tokens);
  if (!q.is_cuda() && q.scalar_type() != at::kDouble && state.scalar_type() == at::kFloat &&
      state.is_contiguous()) {
    Call call(q, k, v, in, options, s);
    Tensor out = at::empty(call.v.sizes(), call.v.options());
    call.args.out = view_of(out);
    call.args.final_state = view_of(state);
    const heed_parallel pool = torch_parallel();
    const heed_status status = kernel::scan_step(call.args, &pool);
    if (status != HEED_UNSUPPORTED) {
      check_status(status, "scan step");
      return out.to(v.scalar_type());
    }
  }
  const at::NoGradGuard no_grad;
  const auto [out, next] = scan_naive(q, k, v, in, options);
  state.copy_(next);
  return out;
}

}  // namespace heed::op
