// attend on CUDA: PyTorch's own kernels where they know the call, else the naive form. Made of
// differentiable operators, so that autograd is theirs too.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "op/attend_backends.h"
#include "op/attend_shape.h"
#include "op/parallel.h"
#include "op/view.h"

namespace heed::op {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

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

// Why PyTorch's kernels cannot take a call, whatever its sizes; or nothing.
const char* cuda_refusal(const at::Tensor& q, const AttendOptions& o) {
  if (q.scalar_type() == at::kDouble) return "float64 has no kernel";
  if (o.weight != kernel::Weight::kSoftmax) return "other weights than softmax have no kernel";
  if (o.soft_cap > 0) return "soft_cap has no kernel";
  if (o.key_bias.defined() || o.q_bias.defined() || o.alibi_slopes.defined() ||
      o.relative_bias.defined()) {
    return "biases have no kernel";
  }
  if (o.block_start.defined()) return "block lists have no kernel";
  if (!o.axes.empty()) return "grids have no kernel";
  return nullptr;
}

// PyTorch's kernels give out its gradient; that of lse comes from the naive form, where it is asked
// for.
class LseFunction : public torch::autograd::Function<LseFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& v, const at::Tensor& lse,
                            const AttendOptions& options) {
    ctx->save_for_backward({q, k, v});
    keep_options(ctx, options);
    return lse.clone();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const AttendGrads g = attend_backward_naive(at::Tensor(), grads[0], saved[0], saved[1],
                                                saved[2], kept_options(ctx));
    return {g.q, g.k, g.v, at::Tensor(), at::Tensor()};
  }
};

Pair run_cuda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              const AttendOptions& o) {
  const AttendShape s = check_attend(q, k, v, o);
  const auto naive = [&](const char* reason) {
    warn_naive("attend on CUDA", reason);
    return attend_naive(q, k, v, o);
  };
  if (q.numel() == 0 || k.numel() == 0) return attend_naive(q, k, v, o);
  if (const char* reason = cuda_refusal(q, o)) return naive(reason);
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

}  // namespace

std::tuple<at::Tensor, at::Tensor> attend_cuda(const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& v, const AttendOptions& o) {
  const auto [out, lse] = run_cuda(q, k, v, o);
  const bool wants = at::GradMode::is_enabled() && out.requires_grad() && !lse.requires_grad();
  if (!wants) return {out, lse};
  return {out, LseFunction::apply(q, k, v, lse, o)};
}

}  // namespace heed::op
