// attend on the CPU: the job table over tensors, forward and backward, and the naive backward.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "io/error.h"
#include "kernel/attend/table.h"
#include "op/attend_backends.h"
#include "op/attend_shape.h"
#include "op/parallel.h"
#include "op/view.h"

namespace heed::op {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

// The call of the kernel, with the tensors and lists that it points into.
struct CpuCall {
  at::Tensor q, k, v, key_bias, q_bias, slopes, relative_bias, relative_scale;
  at::Tensor block_start, block_index, out, lse;
  kernel::AttendCall call;
  kernel::AttendJobs jobs;

  CpuCall(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in,
          const AttendOptions& o, const AttendShape& s, const at::Tensor& out_in,
          const at::Tensor& lse_in)
      : q(rows(q_in)), k(rows(k_in)), v(rows(v_in)), out(out_in), lse(lse_in) {
    const auto floats = [](const at::Tensor& t) { return t.defined() ? t.to(at::kFloat) : t; };
    const auto flat = [&](const at::Tensor& t) {
      return t.defined() ? t.to(at::kFloat).contiguous() : t;
    };
    const auto data = [](const at::Tensor& t) {
      return t.defined() ? t.const_data_ptr<float>() : nullptr;
    };
    key_bias = floats(o.key_bias), q_bias = floats(o.q_bias);
    slopes = flat(o.alibi_slopes);
    relative_bias = flat(o.relative_bias), relative_scale = flat(o.relative_scale);
    call.q = view_of(q), call.k = view_of(k), call.v = view_of(v);
    call.out = view_of(out), call.lse = view_of(lse);
    call.key_bias = view_of(key_bias), call.q_bias = view_of(q_bias);
    call.slopes = data(slopes);
    call.relative_bias = data(relative_bias), call.relative_scale = data(relative_scale);
    const at::Tensor& table = relative_bias.defined() ? relative_bias : relative_scale;
    if (table.defined()) call.reach = (table.size(1) + 1) / 2;
    if (s.packed) {
      call.q_offsets = s.q_offset.data(), call.k_offsets = s.k_offset.data();
      call.sequences = s.sequences;
    }
    call.causal = o.causal;
    call.head_window = s.head_window.data(), call.head_sinks = s.head_sinks.data();
    if (!o.axes.empty()) {
      call.axes = o.axes.data(), call.rank = static_cast<int32_t>(o.axes.size());
    }
    call.weight = o.weight;
    call.scale = static_cast<float>(s.scale), call.soft_cap = static_cast<float>(o.soft_cap);
    call.default_sigmoid_bias = !o.bias;
    call.sigmoid_bias = static_cast<float>(o.bias.value_or(0.0));
    if (o.block_start.defined()) {
      block_start = o.block_start.cpu().contiguous(),
      block_index = o.block_index.cpu().contiguous();
      call.block_start = block_start.const_data_ptr<int64_t>();
      call.block_index = block_index.const_data_ptr<int32_t>();
      call.block_heads = block_start.size(1), call.blocks = block_start.size(2) - 1;
      call.q_block = static_cast<int32_t>(o.q_block);
      call.k_block = static_cast<int32_t>(o.k_block);
      call.any = o.any;
    }
  }
};

constexpr const char* kNoDouble = "float64 has no kernel";

// Float32 zeros like an input, where there is one.
at::Tensor zeros_for(const at::Tensor& t) {
  return t.defined() ? at::zeros(t.sizes(), t.options().dtype(at::kFloat)) : t;
}

at::Tensor as_input(const at::Tensor& grad, const at::Tensor& input) {
  return grad.defined() ? grad.to(input.scalar_type()) : grad;
}

}  // namespace

Pair attend_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const AttendOptions& o) {
  const AttendShape s = check_attend(q, k, v, o);
  if (q.scalar_type() == at::kDouble) {
    warn_naive("attend", kNoDouble);
    return attend_naive(q, k, v, o);
  }
  const at::Tensor out = at::empty({s.batch, s.tq, s.heads, s.value_dim}, q.options());
  const at::Tensor lse = at::empty({s.batch, s.tq, s.heads}, q.options().dtype(at::kFloat));
  if (out.numel() > 0) {
    CpuCall c(q, k, v, o, s, out, lse);
    kernel::build_table(c.call, c.jobs);
    attend_jobs(c.jobs.table);
  }
  return {out, lse};
}

AttendGrads attend_backward_naive(const at::Tensor& grad_out, const at::Tensor& grad_lse,
                                  const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const AttendOptions& o) {
  const at::AutoGradMode grad_mode(true);
  AttendOptions options = o;
  std::vector<at::Tensor> inputs = {q.detach().requires_grad_(), k.detach().requires_grad_(),
                                    v.detach().requires_grad_()};
  for (const AttendExtra& extra : kAttendExtras) {
    at::Tensor& t = options.*extra.input;
    if (t.defined()) inputs.push_back(t = t.detach().requires_grad_());
  }
  const auto [out, lse] = attend_naive(inputs[0], inputs[1], inputs[2], options);
  std::vector<at::Tensor> results, incoming;
  const auto follow = [&](const at::Tensor& result, const at::Tensor& grad) {
    if (!grad.defined() || !result.requires_grad()) return;
    results.push_back(result);
    incoming.push_back(grad.to(result.scalar_type()));
  };
  follow(out, grad_out);
  follow(lse, grad_lse);
  std::vector<at::Tensor> grads(inputs.size());
  if (!results.empty()) {
    grads = torch::autograd::grad(results, inputs, incoming, std::nullopt, false, true);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!grads[i].defined()) grads[i] = at::zeros_like(inputs[i]);
  }
  AttendGrads result;
  result.q = grads[0], result.k = grads[1], result.v = grads[2];
  size_t next = 3;
  for (const AttendExtra& extra : kAttendExtras) {
    if ((o.*extra.input).defined()) result.*extra.grad = grads[next++];
  }
  return result;
}

AttendGrads attend_backward_cpu(const at::Tensor& grad_out, const at::Tensor& grad_lse,
                                const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const at::Tensor& out, const at::Tensor& lse,
                                const AttendOptions& o) {
  const AttendShape s = check_attend(q, k, v, o);
  if (q.scalar_type() == at::kDouble) {
    return attend_backward_naive(grad_out, grad_lse, q, k, v, o);
  }
  // With lists for each query head the kernel keeps apart what the heads of a group add to k and v.
  const bool apart = o.block_start.defined() && o.block_start.size(1) != s.kv_heads;
  const auto for_keys = [&](const at::Tensor& t) {
    if (!apart) return zeros_for(t);
    return at::zeros({t.size(0), t.size(1), s.heads, t.size(3)}, t.options().dtype(at::kFloat));
  };
  AttendGrads g;
  g.q = zeros_for(q), g.k = for_keys(k), g.v = for_keys(v);
  for (const AttendExtra& extra : kAttendExtras) g.*extra.grad = zeros_for(o.*extra.input);
  // Sequences run in parallel and share the slopes: each adds to a row of its own.
  if (o.alibi_slopes.defined()) g.alibi_slopes = at::zeros({s.sequences, s.heads}, g.q.options());
  if (q.numel() > 0 && k.numel() > 0) {
    CpuCall c(q, k, v, o, s, out.contiguous(), lse.contiguous());
    const at::Tensor grad =
        grad_out.defined() ? grad_out.to(q.scalar_type()).contiguous() : at::zeros_like(c.out);
    at::Tensor of_lse;
    if (grad_lse.defined() && kernel::normalised(o.weight)) of_lse = grad_lse.contiguous();
    // The kernel adds by the strides of q_bias.
    if (o.q_bias.defined()) {
      c.q_bias = c.q_bias.contiguous();
      c.call.q_bias = view_of(c.q_bias);
    }
    c.call.grad_out = view_of(grad), c.call.grad_lse = view_of(of_lse);
    c.call.grad_q = view_of(g.q), c.call.grad_k = view_of(g.k), c.call.grad_v = view_of(g.v);
    c.call.grad_key_bias = view_of(g.key_bias), c.call.grad_q_bias = view_of(g.q_bias);
    const auto data = [](const at::Tensor& t) {
      return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
    };
    c.call.grad_slopes = data(g.alibi_slopes), c.call.grad_slopes_stride = s.heads;
    c.call.grad_relative_bias = data(g.relative_bias);
    c.call.grad_relative_scale = data(g.relative_scale);
    kernel::build_table(c.call, c.jobs);
    const heed_parallel pool = torch_parallel();
    check_status(kernel::attend_backward(c.jobs.table, c.jobs.grads.data(), &pool),
                 "attend backward");
  }
  if (apart) {
    const auto of_group = [&](const at::Tensor& t) {
      return t.view({t.size(0), t.size(1), s.kv_heads, s.group, t.size(3)}).sum(3);
    };
    g.k = of_group(g.k), g.v = of_group(g.v);
  }
  if (g.alibi_slopes.defined()) g.alibi_slopes = g.alibi_slopes.sum(0);
  g.q = as_input(g.q, q), g.k = as_input(g.k, k), g.v = as_input(g.v, v);
  for (const AttendExtra& extra : kAttendExtras) {
    g.*extra.grad = as_input(g.*extra.grad, o.*extra.input);
  }
  return g;
}

void attend_jobs(const kernel::AttendTable& table) {
  const heed_parallel pool = torch_parallel();
  check_status(kernel::attend_forward(table, &pool), "attend");
}

}  // namespace heed::op
