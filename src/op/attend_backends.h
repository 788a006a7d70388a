// What runs a call of attend, between attend_op.cc (schema, dispatch, autograd) and the files that
// compute.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <tuple>

#include "op/attend.h"

namespace heed::op {

// Undefined where the input is.
struct AttendGrads {
  at::Tensor q, k, v, key_bias, q_bias, alibi_slopes, relative_bias, relative_scale;
};

// The options that are differentiable tensors, and their gradients.
struct AttendExtra {
  at::Tensor AttendOptions::*input;
  at::Tensor AttendGrads::*grad;
};
inline constexpr AttendExtra kAttendExtras[] = {
    {&AttendOptions::key_bias, &AttendGrads::key_bias},
    {&AttendOptions::q_bias, &AttendGrads::q_bias},
    {&AttendOptions::alibi_slopes, &AttendGrads::alibi_slopes},
    {&AttendOptions::relative_bias, &AttendGrads::relative_bias},
    {&AttendOptions::relative_scale, &AttendGrads::relative_scale}};

std::tuple<at::Tensor, at::Tensor> attend_cpu(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& v, const AttendOptions& o);
std::tuple<at::Tensor, at::Tensor> attend_cuda(const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& v, const AttendOptions& o);

// grad_out and grad_lse may be undefined: zero. out and lse are those of the forward call.
AttendGrads attend_backward_cpu(const at::Tensor& grad_out, const at::Tensor& grad_lse,
                                const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const at::Tensor& out, const at::Tensor& lse,
                                const AttendOptions& o);
AttendGrads attend_backward_naive(const at::Tensor& grad_out, const at::Tensor& grad_lse,
                                  const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const AttendOptions& o);

// Options of a call for its backward pass, without the differentiable tensors (those live in
// save_for_backward).
void keep_options(torch::autograd::AutogradContext* ctx, const AttendOptions& options);
AttendOptions kept_options(torch::autograd::AutogradContext* ctx);

}  // namespace heed::op
