// Attention written down: logits, a softmax over a set of visible pairs, values. What the naive
// forms of mechanisms on `attend` are made of where op::attend_naive does not know their equation.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace heed::mixer {

// float64 for float64, else float32.
at::ScalarType dense_type(const at::Tensor& t);

// scale q_i.k_j as [B,H,Tq,Tk] in dense_type, from q [B,Tq,H,D] and k [B,Tk,Hk,D]; query head h
// reads key head h div (H/Hk).
at::Tensor dense_logits(const at::Tensor& q, const at::Tensor& k, double scale);

// bool [Tq,Tk]: query i stands at i + Tk - Tq.
at::Tensor dense_visible(int64_t tq, int64_t tk, bool causal, const at::Device& device);

// Softmax over the visible pairs and its logsumexp [B,H,Tq]; rows that see nothing: 0 and -inf.
std::pair<at::Tensor, at::Tensor> dense_softmax(const at::Tensor& x, const at::Tensor& visible);

// sum_j w_ij v_j as [B,Tq,H,Dv] in v's dtype, from w [B,H,Tq,Tk] and v [B,Tk,Hk,Dv].
at::Tensor dense_values(const at::Tensor& w, const at::Tensor& v);

}  // namespace heed::mixer
