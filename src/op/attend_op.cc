// The operators torch.ops.heed.attend, attend_forward, attend_backward: the engine's table, and
// functions over it.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "kernel/attend/table.h"
#include "op/attend_shape.h"
#include "op/dispatch.h"
#include "op/engine_call.h"
#include "op/parallel.h"

namespace heed::op {
namespace {

using at::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

template <void (*kRun)(AttendTensors&, const AttendSettings&, const Tensor&)>
constexpr EngineForm form_of() {
  return {[](std::span<Tensor> tensors, const void* options, const Tensor& cu_seqlens_q) {
            kRun(*reinterpret_cast<AttendTensors*>(tensors.data()),
                 *static_cast<const AttendSettings*>(options), cu_seqlens_q);
          },
          true};
}

template <const AttendRow* kRow>
void run_row(AttendTensors& x, const AttendSettings& o, const Tensor& cu_seqlens_q) {
  kRow->run(x, o, cu_seqlens_q);
}

const Engine& attend_engine() {
  const auto row = [](const AttendRow& row, EngineForm form) {
    return Engine::TensorBackend::on_cuda("attend", row.name, row.priority, row.refuses, form);
  };
  static const Engine::TensorBackend on_cuda[] = {
      row(kAttendFlash, form_of<run_row<&kAttendFlash>>()),
      row(kAttendEfficient, form_of<run_row<&kAttendEfficient>>())};
  static const Engine engine(kernel::kAttend, form_of<naive::attend>(), kernel::attend_backends(),
                             on_cuda);
  return engine;
}

struct Call {
  AttendTensors x;
  AttendSettings o;

  Call(const Tensor& q, const Tensor& k, const Tensor& v, const AttendOptions& options)
      : x{q,
          k,
          v,
          options.key_bias,
          options.q_bias,
          options.alibi_slopes,
          options.relative_bias,
          options.relative_scale,
          options.cu_seqlens_k,
          options.kv_lengths,
          options.head_window,
          options.head_sinks,
          options.block_start,
          options.block_index,
          {},
          {},
          {}} {
    constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
    o.causal = options.causal;
    o.scale = options.scale.value_or(kNone);
    o.window = options.window, o.sinks = options.sinks;
    o.soft_cap = options.soft_cap;
    o.weight = static_cast<int64_t>(options.weight);
    o.bias = options.bias.value_or(kNone);
    o.function = options.function, o.power = options.power;
    o.q_block = options.q_block, o.k_block = options.k_block, o.any = options.any;
    if (!options.axes.empty()) {
      x.axes = at::empty({static_cast<int64_t>(options.axes.size()), 4}, at::kLong);
      int64_t* at = x.axes.mutable_data_ptr<int64_t>();
      for (const kernel::Axis& axis : options.axes) {
        for (const int64_t value : {axis.length, axis.window, axis.stride, int64_t{axis.causal}}) {
          *at++ = value;
        }
      }
    }
    // Biases beside tokens that are not float64 are float32: they alone do not ask for float64.
    if (q.scalar_type() == at::kDouble) return;
    for (Tensor* t :
         {&x.key_bias, &x.q_bias, &x.alibi_slopes, &x.relative_bias, &x.relative_scale}) {
      if (t->defined() && t->scalar_type() == at::kDouble) *t = t->to(at::kFloat);
    }
  }
};

}  // namespace

void register_attend(torch::Library& library) { attend_engine().define(library); }

Pair attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendOptions& options) {
  Call call(q, k, v, options);
  attend_engine().forward(tensor_list(call.x), &call.o, options.cu_seqlens_q);
  return {std::move(call.x.out), std::move(call.x.lse)};
}

Pair attend_naive(const Tensor& q, const Tensor& k, const Tensor& v, const AttendOptions& options) {
  Call call(q, k, v, options);
  attend_engine().run_naive(tensor_list(call.x), &call.o, options.cu_seqlens_q);
  return {call.x.out, call.x.lse};
}

AttendShape check_attend(const Tensor& q, const Tensor& k, const Tensor& v,
                         const AttendOptions& options) {
  Call call(q, k, v, options);
  const auto list = tensor_list(call.x);
  const bool wide = is_wide(kernel::kAttend, list);
  std::vector<Tensor> x(list.begin(), list.end());
  bind_call(kernel::kAttend, x, &call.o, options.cu_seqlens_q, wide).check(HEED_FORWARD, wide);
  return {call.x, call.o, options.cu_seqlens_q};
}

std::vector<Tensor> attend_lse_backward(const AttendTensors& x, const AttendSettings& o,
                                        const Tensor& cu_seqlens_q, const Tensor& grad_lse) {
  AttendTensors call = x, grads;
  grads.lse = grad_lse;
  const EngineForm form = form_of<naive::attend>();
  attend_engine().form_backward(form, tensor_list(call), tensor_list(grads), &o, cu_seqlens_q);
  return {grads.q, grads.k, grads.v};
}

void attend_jobs(const kernel::AttendTable& table) {
  const heed_parallel pool = torch_parallel();
  check_status(kernel::attend_forward(table, &pool), "attend");
}

}  // namespace heed::op
