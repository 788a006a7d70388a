// The operator torch.ops.heed.attend: job tables over tensors, autograd, CUDA by PyTorch's kernels.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "io/error.h"
#include "op/attend_shape.h"
#include "op/library.h"
#include "op/parallel.h"
#include "op/view.h"

namespace heed::op {
namespace {

using OptTensor = std::optional<at::Tensor>;
using Pair = std::tuple<at::Tensor, at::Tensor>;
using Grads = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <typename T>
T* at_row(T* base, const at::Tensor& t, int64_t i0, int64_t i1, int64_t i2) {
  const int64_t offset = i0 * t.stride(0) + i1 * t.stride(1) + i2 * t.stride(2);
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<T*>(static_cast<Byte*>(base) + offset * t.element_size());
}

// The job table of one call on the CPU, with the tensors that it points into.
struct Jobs {
  at::Tensor q, k, v, key_bias, slopes, block_start, block_index, out, lse;
  std::vector<kernel::Segment> segments;
  std::vector<kernel::AttendJob> jobs;
  kernel::AttendTable table;

  Jobs(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in,
       const AttendOptions& o, const AttendShape& s, const at::Tensor& out_in,
       const at::Tensor& lse_in)
      : q(rows(q_in)), k(rows(k_in)), v(rows(v_in)), out(out_in), lse(lse_in) {
    if (o.key_bias.defined()) key_bias = o.key_bias.to(at::kFloat);
    if (o.alibi_slopes.defined()) slopes = o.alibi_slopes.to(at::kFloat).contiguous();
    if (o.block_start.defined()) {
      block_start = o.block_start.contiguous();
      block_index = o.block_index.contiguous();
    }
    const int64_t count = s.sequences * s.kv_heads;
    segments.resize(count);
    jobs.resize(count);
    for (int64_t n = 0; n < s.sequences; ++n) {
      const int64_t batch = s.packed ? 0 : n;
      const int64_t q0 = s.packed ? s.q_offset[n] : 0, k0 = s.packed ? s.k_offset[n] : 0;
      for (int64_t h = 0; h < s.kv_heads; ++h) {
        kernel::Segment& segment = segments[n * s.kv_heads + h];
        kernel::AttendJob& job = jobs[n * s.kv_heads + h];
        segment.k = at_row(k.const_data_ptr(), k, batch, k0, h);
        segment.v = at_row(v.const_data_ptr(), v, batch, k0, h);
        segment.k_stride = k.stride(1);
        segment.v_stride = v.stride(1);
        segment.length = s.keys(n);
        const int64_t qh = h * s.group;
        if (key_bias.defined()) {
          segment.bias = static_cast<const float*>(
              at_row(static_cast<const void*>(key_bias.const_data_ptr()), key_bias, batch, k0, qh));
          segment.bias_stride = key_bias.stride(1);
          segment.bias_head_stride = key_bias.stride(2);
        }
        job.q = at_row(q.const_data_ptr(), q, batch, q0, qh);
        job.q_stride = q.stride(1);
        job.q_head_stride = q.stride(2);
        job.out = at_row(out.data_ptr(), out, batch, q0, qh);
        job.out_stride = out.stride(1);
        job.out_head_stride = out.stride(2);
        job.lse = static_cast<float*>(at_row(lse.data_ptr(), lse.unsqueeze(3), batch, q0, qh));
        job.lse_stride = lse.stride(1);
        job.lse_head_stride = lse.stride(2);
        job.queries = s.queries(n);
        job.q_position = s.keys(n) - s.queries(n);
        job.segments = &segment;
        job.segment_count = 1;
        job.causal = o.causal;
        job.window = s.head_window[h];
        job.sinks = s.head_sinks[h];
        if (slopes.defined()) job.slopes = slopes.const_data_ptr<float>() + qh;
        if (o.weight == kernel::Weight::kSigmoid) {
          job.sigmoid_bias = static_cast<float>(s.sigmoid_bias(o, n));
        }
        if (block_start.defined()) {
          job.block_start =
              block_start.const_data_ptr<int64_t>() + (n * s.kv_heads + h) * block_start.size(2);
          job.block_index = block_index.const_data_ptr<int32_t>();
        }
      }
    }
    table.jobs = jobs.data();
    table.job_count = count;
    table.group = static_cast<int32_t>(s.group);
    table.head_dim = static_cast<int32_t>(s.dim);
    table.value_dim = static_cast<int32_t>(s.value_dim);
    table.q_dtype = view_dtype(q.scalar_type());
    table.kv_dtype = view_dtype(k.scalar_type());
    table.weight = o.weight;
    table.scale = static_cast<float>(s.scale);
    table.soft_cap = static_cast<float>(o.soft_cap);
    table.q_block = static_cast<int32_t>(o.q_block);
    table.k_block = static_cast<int32_t>(o.k_block);
  }
};

// Why the CPU kernel cannot take this call, or nothing.
const char* cpu_refusal(const at::Tensor& q, const AttendShape& s) {
  if (q.scalar_type() == at::kDouble) return "float64 has no kernel";
  if (s.dim > 256 || s.value_dim > 256) return "the kernels take head dims up to 256";
  return nullptr;
}

Pair attend_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const AttendOptions& o) {
  const AttendShape s = check_attend(q, k, v, o);
  if (const char* reason = cpu_refusal(q, s)) {
    warn_naive("attend", reason);
    return attend_naive(q, k, v, o);
  }
  const bool half = q.scalar_type() == at::kHalf;  // queries are float32 or bfloat16 in the kernel
  const at::Tensor qc = half ? q.to(at::kFloat) : q;
  at::Tensor out = at::empty({s.batch, s.tq, s.heads, s.value_dim}, qc.options());
  at::Tensor lse = at::empty({s.batch, s.tq, s.heads}, qc.options().dtype(at::kFloat));
  if (out.numel() > 0) {
    const Jobs jobs(qc, k, v, o, s, out, lse);
    const heed_parallel pool = torch_parallel();
    check_status(kernel::attend_forward(jobs.table, &pool), "attend");
  }
  if (o.weight == kernel::Weight::kSigmoid) lse.zero_();
  return {half ? out.to(at::kHalf) : out, lse};
}

Grads attend_backward_naive(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const AttendOptions& o) {
  const at::AutoGradMode grad_mode(true);
  AttendOptions options = o;
  std::vector<at::Tensor> inputs = {q.detach().requires_grad_(), k.detach().requires_grad_(),
                                    v.detach().requires_grad_()};
  if (o.key_bias.defined()) {
    inputs.push_back(options.key_bias = o.key_bias.detach().requires_grad_());
  }
  if (o.alibi_slopes.defined()) {
    inputs.push_back(options.alibi_slopes = o.alibi_slopes.detach().requires_grad_());
  }
  const auto [out, lse] = attend_naive(inputs[0], inputs[1], inputs[2], options);
  std::vector<at::Tensor> grads(inputs.size());
  if (out.requires_grad()) {
    grads = torch::autograd::grad({out}, inputs, {grad_out}, std::nullopt, false, true);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!grads[i].defined()) grads[i] = at::zeros_like(inputs[i]);
  }
  size_t next = 3;
  const at::Tensor key_bias = o.key_bias.defined() ? grads[next++] : at::Tensor();
  const at::Tensor slopes = o.alibi_slopes.defined() ? grads[next++] : at::Tensor();
  return {grads[0], grads[1], grads[2], key_bias, slopes};
}

Grads attend_backward_cpu(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                          const AttendOptions& o) {
  const AttendShape s = check_attend(q, k, v, o);
  if (cpu_refusal(q, s) != nullptr) return attend_backward_naive(grad_out, q, k, v, o);
  const auto f32 = q.options().dtype(at::kFloat);
  at::Tensor grad_q = at::zeros(q.sizes(), f32);
  at::Tensor grad_k = at::zeros(k.sizes(), f32);
  at::Tensor grad_v = at::zeros(v.sizes(), f32);
  at::Tensor grad_bias, grad_slopes;
  if (o.key_bias.defined()) grad_bias = at::zeros(o.key_bias.sizes(), f32);
  // Sequences run in parallel and share the slopes: each adds to a row of its own.
  if (o.alibi_slopes.defined()) grad_slopes = at::zeros({s.sequences, s.heads}, f32);
  if (q.numel() > 0 && k.numel() > 0) {
    const bool half = q.scalar_type() == at::kHalf;
    const auto qc = half ? q.to(at::kFloat) : q;
    const Jobs jobs(qc, k, v, o, s, out.to(qc.scalar_type()).contiguous(), lse.contiguous());
    const at::Tensor grad = grad_out.to(qc.scalar_type()).contiguous();
    std::vector<kernel::AttendGradJob> grads(jobs.jobs.size());
    for (int64_t n = 0; n < s.sequences; ++n) {
      const int64_t batch = s.packed ? 0 : n;
      const int64_t q0 = s.packed ? s.q_offset[n] : 0, k0 = s.packed ? s.k_offset[n] : 0;
      for (int64_t h = 0; h < s.kv_heads; ++h) {
        kernel::AttendGradJob& job = grads[n * s.kv_heads + h];
        const int64_t qh = h * s.group;
        const auto row = [&](const at::Tensor& t, int64_t i1, int64_t i2) {
          return t.mutable_data_ptr<float>() + batch * t.stride(0) + i1 * t.stride(1) +
                 i2 * t.stride(2);
        };
        job.grad_out = at_row(grad.const_data_ptr(), grad, batch, q0, qh);
        job.grad_q = row(grad_q, q0, qh);
        job.grad_q_stride = grad_q.stride(1);
        job.grad_q_head_stride = grad_q.stride(2);
        job.grad_k = row(grad_k, k0, h);
        job.grad_v = row(grad_v, k0, h);
        job.grad_k_stride = grad_k.stride(1);
        job.grad_v_stride = grad_v.stride(1);
        if (grad_bias.defined()) {
          job.grad_bias = row(grad_bias, k0, qh);
          job.grad_bias_stride = grad_bias.stride(1);
          job.grad_bias_head_stride = grad_bias.stride(2);
        }
        if (grad_slopes.defined()) {
          job.grad_slopes = grad_slopes.mutable_data_ptr<float>() + n * s.heads + qh;
        }
      }
    }
    const heed_parallel pool = torch_parallel();
    check_status(kernel::attend_backward(jobs.table, grads.data(), &pool), "attend backward");
  }
  if (grad_bias.defined()) grad_bias = grad_bias.to(o.key_bias.scalar_type());
  if (grad_slopes.defined()) grad_slopes = grad_slopes.sum(0).to(o.alibi_slopes.scalar_type());
  return {grad_q.to(q.scalar_type()), grad_k.to(k.scalar_type()), grad_v.to(v.scalar_type()),
          grad_bias, grad_slopes};
}

// Keys and values of each query head: [B,T,Hk,D] -> [B,T,Hq,D].
at::Tensor for_query_heads(const at::Tensor& t, const AttendShape& s) {
  return t.unsqueeze(3)
      .expand({t.size(0), t.size(1), t.size(2), s.group, t.size(3)})
      .reshape({t.size(0), t.size(1), s.heads, t.size(3)});
}

// CUDA, what flash attention has no rule for (sinks, windows per head, windows in float32):
// PyTorch's memory-efficient kernel with the rule as an additive bias, in blocks of queries whose
// bias stays under 256 MB.
Pair attend_cuda_masked(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const AttendOptions& o, const AttendShape& s) {
  constexpr int64_t kBiasBytes = int64_t{256} << 20;
  const int64_t rules = s.same_window() ? 1 : s.kv_heads;
  const int64_t width = (s.tk + 15) / 16 * 16;  // the kernel reads aligned rows
  std::vector<at::Tensor> hidden;
  for (int64_t h = 0; h < rules; ++h) {
    hidden.push_back(
        attend_visible(s.tq, s.tk, o.causal, s.head_window[h], s.head_sinks[h], q.device())
            .logical_not_());
  }
  const at::Tensor key = for_query_heads(k, s).transpose(1, 2);
  const at::Tensor value = for_query_heads(v, s).transpose(1, 2);
  const int64_t of_row =
      (rules == 1 ? 1 : s.heads) * width * static_cast<int64_t>(q.element_size());
  const int64_t block = std::clamp<int64_t>(kBiasBytes / of_row, 1, s.tq);
  std::vector<at::Tensor> outs, lses;
  for (int64_t begin = 0; begin < s.tq; begin += block) {
    const int64_t rows = std::min(block, s.tq - begin);
    at::Tensor bias = at::zeros({rules, rows, width}, q.options());
    for (int64_t h = 0; h < rules; ++h) {
      bias[h]
          .narrow(1, 0, s.tk)
          .masked_fill_(hidden[h].narrow(0, begin, rows), -std::numeric_limits<double>::infinity());
    }
    if (rules > 1) bias = bias.repeat_interleave(s.group, 0);
    bias = bias.unsqueeze(0).expand({s.batch, s.heads, rows, width}).narrow(3, 0, s.tk);
    const auto result = at::_scaled_dot_product_efficient_attention(
        q.narrow(1, begin, rows).transpose(1, 2), key, value, bias, true, 0.0, false, s.scale);
    outs.push_back(std::get<0>(result).transpose(1, 2));
    lses.push_back(std::get<1>(result).detach().narrow(2, 0, rows).transpose(1, 2));
  }
  if (outs.size() == 1) return {outs[0], lses[0]};
  return {at::cat(outs, 1), at::cat(lses, 1)};
}

// CUDA: PyTorch's own kernels where they know the call. Made of differentiable operators, so that
// autograd is theirs too.
Pair attend_cuda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const AttendOptions& o) {
  const AttendShape s = check_attend(q, k, v, o);
  const auto naive = [&](const char* reason) {
    warn_naive("attend on CUDA", reason);
    return attend_naive(q, k, v, o);
  };
  if (q.numel() == 0 || k.numel() == 0) return attend_naive(q, k, v, o);
  if (q.scalar_type() == at::kDouble) return naive("float64 has no kernel");
  if (o.weight != kernel::Weight::kSoftmax) return naive("sigmoid weights have no kernel");
  if (o.soft_cap > 0) return naive("soft_cap has no kernel");
  if (o.key_bias.defined() || o.alibi_slopes.defined()) return naive("biases have no kernel");
  if (o.block_start.defined()) return naive("block lists have no kernel");
  const int64_t window = s.head_window[0];
  bool unseeing = false;  // queries that see no key, which PyTorch's kernels answer differently
  int64_t longest_q = 0, longest_k = 0;
  for (int64_t n = 0; n < s.sequences; ++n) {
    unseeing |= s.keys(n) == 0 || ((o.causal || window > 0) && s.queries(n) > s.keys(n));
    longest_q = std::max(longest_q, s.queries(n));
    longest_k = std::max(longest_k, s.keys(n));
  }
  if (unseeing) return naive("a query that sees no key");
  std::optional<at::Tensor> cu_q, cu_k;
  if (s.packed) {
    cu_q = o.cu_seqlens_q.to(q.device(), at::kInt);
    cu_k = o.cu_seqlens_k.defined() ? o.cu_seqlens_k.to(q.device(), at::kInt) : cu_q;
  }
  const bool masked = !s.same_window() || (window > 0 && s.head_sinks[0] > 0);
  const bool flash = !masked && q.scalar_type() != at::kFloat && s.dim == s.value_dim &&
                     s.dim % 8 == 0 && s.dim <= 256;
  if (flash) {
    const auto packed = [&](const at::Tensor& t) {
      return s.packed ? rows(t).squeeze(0) : rows(t);
    };
    std::optional<int64_t> left, right;
    if (window > 0) {
      left = window - 1;
      right = o.causal ? 0 : window - 1;
    }
    const auto result =
        at::_flash_attention_forward(packed(q), packed(k), packed(v), cu_q, cu_k, longest_q,
                                     longest_k, 0.0, o.causal, false, s.scale, left, right);
    at::Tensor out = std::get<0>(result), lse = std::get<1>(result).detach();
    if (s.packed) return {out.unsqueeze(0), lse.slice(1, 0, s.tq).t().unsqueeze(0)};
    return {out, lse.slice(2, 0, s.tq).transpose(1, 2)};
  }
  const int64_t aligned = q.scalar_type() == at::kFloat ? 4 : 8;
  if (s.dim % aligned != 0 || s.value_dim % aligned != 0) {
    return naive("head dims must be multiples of 4 (float32) or 8");
  }
  if (masked || window > 0) {
    if (s.packed) return naive("packs with sinks, windows per head or float32 windows");
    return attend_cuda_masked(q, k, v, o, s);
  }
  constexpr int64_t kNoMask = 0, kCausalFromBottomRight = 2;
  const auto result = at::_efficient_attention_forward(
      rows(q), for_query_heads(k, s), for_query_heads(v, s), std::nullopt, cu_q, cu_k, longest_q,
      longest_k, 0.0, o.causal ? kCausalFromBottomRight : kNoMask, true, s.scale);
  const at::Tensor out = std::get<0>(result);
  at::Tensor lse = std::get<1>(result).detach();  // [B or N, H, queries rounded up]
  if (!s.packed) return {out, lse.slice(2, 0, s.tq).transpose(1, 2)};
  std::vector<at::Tensor> parts;
  for (int64_t n = 0; n < s.sequences; ++n) {
    parts.push_back(lse.select(0, n).slice(1, 0, s.queries(n)).t());
  }
  return {out, at::cat(parts).unsqueeze(0)};
}

// ---- autograd
// ----------------------------------------------------------------------------------------

struct OptionsHolder : torch::CustomClassHolder {
  explicit OptionsHolder(const AttendOptions& o) : options(o) {}
  AttendOptions options;
};

Pair call_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const AttendOptions& o);
Grads call_backward(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                    const AttendOptions& o);

class AttendFunction : public torch::autograd::Function<AttendFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const at::Tensor& q, const at::Tensor& k,
                                                const at::Tensor& v, const OptTensor& key_bias,
                                                const OptTensor& slopes,
                                                const AttendOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [out, lse] = call_forward(q, k, v, options);
    ctx->save_for_backward({q, k, v, or_undefined(key_bias), or_undefined(slopes), out, lse});
    AttendOptions kept = options;  // the differentiable tensors live in save_for_backward
    kept.key_bias = at::Tensor();
    kept.alibi_slopes = at::Tensor();
    ctx->saved_data["options"] =
        c10::IValue::make_capsule(c10::make_intrusive<OptionsHolder>(kept));
    ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto holder = ctx->saved_data["options"].toCapsule();
    AttendOptions options = static_cast<OptionsHolder*>(holder.get())->options;
    options.key_bias = saved[3];
    options.alibi_slopes = saved[4];
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [gq, gk, gv, gb, gs] =
        call_backward(grads[0], saved[0], saved[1], saved[2], saved[5], saved[6], options);
    return {gq, gk, gv, gb, gs, at::Tensor()};
  }
};

bool wants_grad(const at::Tensor& t) { return t.defined() && t.requires_grad(); }

Pair attend_autograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttendOptions& o) {
  if (q.is_cuda()) return attend_cuda(q, k, v, o);
  const auto result =
      AttendFunction::apply(q, k, v, or_none(o.key_bias), or_none(o.alibi_slopes), o);
  return {result[0], result[1]};
}

// ---- the operator: options as plain arguments
// --------------------------------------------------------

constexpr const char* kArguments =
    "Tensor? key_bias=None, Tensor? alibi_slopes=None, Tensor? cu_seqlens_q=None, Tensor? "
    "cu_seqlens_k=None, Tensor? head_window=None, Tensor? head_sinks=None, Tensor? "
    "block_start=None, Tensor? block_index=None, int q_block=0, int k_block=0, bool causal=False, "
    "float? scale=None, int window=0, int sinks=0, float soft_cap=0., bool sigmoid=False, float? "
    "bias=None";

AttendOptions gather(const OptTensor& key_bias, const OptTensor& slopes, const OptTensor& cu_q,
                     const OptTensor& cu_k, const OptTensor& head_window,
                     const OptTensor& head_sinks, const OptTensor& block_start,
                     const OptTensor& block_index, int64_t q_block, int64_t k_block, bool causal,
                     std::optional<double> scale, int64_t window, int64_t sinks, double soft_cap,
                     bool sigmoid, std::optional<double> bias) {
  AttendOptions o;
  o.causal = causal;
  o.scale = scale;
  o.window = window;
  o.sinks = sinks;
  o.soft_cap = soft_cap;
  o.weight = sigmoid ? kernel::Weight::kSigmoid : kernel::Weight::kSoftmax;
  o.bias = bias;
  o.key_bias = or_undefined(key_bias);
  o.alibi_slopes = or_undefined(slopes);
  o.cu_seqlens_q = or_undefined(cu_q);
  o.cu_seqlens_k = or_undefined(cu_k);
  o.head_window = or_undefined(head_window);
  o.head_sinks = or_undefined(head_sinks);
  o.block_start = or_undefined(block_start);
  o.block_index = or_undefined(block_index);
  o.q_block = q_block;
  o.k_block = k_block;
  return o;
}

// Calls f with the operator's option arguments, in the order of kArguments.
template <typename F>
auto with_arguments(const AttendOptions& o, F&& f) {
  return f(or_none(o.key_bias), or_none(o.alibi_slopes), or_none(o.cu_seqlens_q),
           or_none(o.cu_seqlens_k), or_none(o.head_window), or_none(o.head_sinks),
           or_none(o.block_start), or_none(o.block_index), o.q_block, o.k_block, o.causal, o.scale,
           o.window, o.sinks, o.soft_cap, o.weight == kernel::Weight::kSigmoid, o.bias);
}

// The operator's forward for one dispatch key, with options gathered from plain arguments.
template <Pair (*kForward)(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const AttendOptions&)>
Pair forward_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const OptTensor& key_bias, const OptTensor& slopes, const OptTensor& cu_q,
                const OptTensor& cu_k, const OptTensor& head_window, const OptTensor& head_sinks,
                const OptTensor& block_start, const OptTensor& block_index, int64_t q_block,
                int64_t k_block, bool causal, std::optional<double> scale, int64_t window,
                int64_t sinks, double soft_cap, bool sigmoid, std::optional<double> bias) {
  return kForward(
      q, k, v,
      gather(key_bias, slopes, cu_q, cu_k, head_window, head_sinks, block_start, block_index,
             q_block, k_block, causal, scale, window, sinks, soft_cap, sigmoid, bias));
}

template <Grads (*kBackward)(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                             const at::Tensor&, const at::Tensor&, const at::Tensor&,
                             const AttendOptions&)>
Grads backward_op(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                  const OptTensor& key_bias, const OptTensor& slopes, const OptTensor& cu_q,
                  const OptTensor& cu_k, const OptTensor& head_window, const OptTensor& head_sinks,
                  const OptTensor& block_start, const OptTensor& block_index, int64_t q_block,
                  int64_t k_block, bool causal, std::optional<double> scale, int64_t window,
                  int64_t sinks, double soft_cap, bool sigmoid, std::optional<double> bias) {
  return kBackward(
      grad_out, q, k, v, out, lse,
      gather(key_bias, slopes, cu_q, cu_k, head_window, head_sinks, block_start, block_index,
             q_block, k_block, causal, scale, window, sinks, soft_cap, sigmoid, bias));
}

using ForwardOp = decltype(forward_op<attend_cpu>);
using BackwardOp = decltype(backward_op<attend_backward_cpu>);

Pair attend_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const AttendOptions& o) {
  auto sizes = q.sym_sizes().vec();
  sizes.back() = v.sym_size(-1);
  const at::Tensor out = at::empty_symint(sizes, q.options());
  sizes.pop_back();
  const auto lse = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return {out, at::empty_symint(sizes, q.options().dtype(lse))};
}

Grads attend_backward_meta(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                           const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                           const AttendOptions& o) {
  const auto like = [](const at::Tensor& t) { return t.defined() ? at::empty_like(t) : t; };
  return {like(q), like(k), like(v), like(o.key_bias), like(o.alibi_slopes)};
}

Grads attend_backward_cuda(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                           const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                           const AttendOptions& o) {
  return attend_backward_naive(grad_out, q, k, v, o);
}

Pair call_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const AttendOptions& o) {
  link_library();
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("heed::attend", "").typed<ForwardOp>();
  return with_arguments(o, [&](const auto&... rest) { return op.call(q, k, v, rest...); });
}

Grads call_backward(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                    const AttendOptions& o) {
  link_library();
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("heed::attend_backward", "")
                             .typed<BackwardOp>();
  return with_arguments(
      o, [&](const auto&... rest) { return op.call(grad_out, q, k, v, out, lse, rest...); });
}

}  // namespace

void register_attend(torch::Library& library) {
  const std::string forward = fmt::format(
      "attend(Tensor q, Tensor k, Tensor v, *, {}) -> (Tensor out, Tensor lse)", kArguments);
  const std::string backward = fmt::format(
      "attend_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, *, "
      "{}) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      kArguments);
  library.def(torch::schema(forward.c_str()));
  library.def(torch::schema(backward.c_str()));
  library.impl("attend", torch::dispatch(c10::DispatchKey::CPU, TORCH_FN(forward_op<attend_cpu>)));
  library.impl("attend",
               torch::dispatch(c10::DispatchKey::CUDA, TORCH_FN(forward_op<attend_cuda>)));
  library.impl("attend",
               torch::dispatch(c10::DispatchKey::Meta, TORCH_FN(forward_op<attend_meta>)));
  library.impl("attend",
               torch::dispatch(c10::DispatchKey::Autograd, TORCH_FN(forward_op<attend_autograd>)));
  library.impl("attend_backward",
               torch::dispatch(c10::DispatchKey::CPU, TORCH_FN(backward_op<attend_backward_cpu>)));
  library.impl("attend_backward", torch::dispatch(c10::DispatchKey::CUDA,
                                                  TORCH_FN(backward_op<attend_backward_cuda>)));
  library.impl("attend_backward", torch::dispatch(c10::DispatchKey::Meta,
                                                  TORCH_FN(backward_op<attend_backward_meta>)));
}

std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v, const AttendOptions& options) {
  if (q.is_cuda()) return attend_cuda(q, k, v, options);
  const bool grad = at::GradMode::is_enabled() &&
                    (wants_grad(q) || wants_grad(k) || wants_grad(v) ||
                     wants_grad(options.key_bias) || wants_grad(options.alibi_slopes));
  if (!grad) return attend_cpu(q, k, v, options);
  check_attend(q, k, v, options);
  return attend_autograd(q, k, v, options);
}

void attend_jobs(const kernel::AttendTable& table) {
  const heed_parallel pool = torch_parallel();
  check_status(kernel::attend_forward(table, &pool), "attend");
}

}  // namespace heed::op
