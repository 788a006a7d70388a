// attend on CUDA: two rows of the table over PyTorch's own kernels, with what each does not know.
// Made of differentiable operators, so that autograd is theirs too.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "op/attend_shape.h"
#include "op/view.h"

namespace heed::op {
namespace {

using kernel::given;
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
                        const AttendSettings& o, const AttendShape& s) {
  constexpr int64_t kBiasBytes = int64_t{256} << 20;
  const int64_t rules = s.same_window() ? 1 : s.kv_heads;
  const int64_t width = (s.tk + 15) / 16 * 16;  // the kernel reads aligned rows
  std::vector<at::Tensor> hidden;
  for (int64_t h = 0; h < rules; ++h) {
    hidden.push_back(
        attend_visible(s.tq, s.tk, o.causal != 0, s.head_window[h], s.head_sinks[h], q.device())
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

// Whether all heads have the window and the sinks of the first.
bool same_rule(const kernel::AttendCall& c) {
  for (const heed_view* view : {&c.in.head_window, &c.in.head_sinks}) {
    for (int64_t h = 1; given(*view) && h < view->sizes[0]; ++h) {
      const int64_t* list = kernel::attend_list(*view);
      if (list[h] != list[0]) return false;
    }
  }
  return true;
}
int64_t first_of(const heed_view& list, int64_t fallback) {
  return given(list) ? kernel::attend_list(list)[0] : fallback;
}

// Why neither of PyTorch's kernels takes a call; or nothing.
const char* refuses_any(const kernel::AttendCall& c) {
  const auto& x = c.in;
  if (c.options.weight != static_cast<int64_t>(kernel::Weight::kSoftmax)) {
    return "other weights than softmax have no kernel";
  }
  if (x.q.dtype != x.k.dtype) return "queries and keys of two dtypes have no kernel";
  if (c.options.soft_cap > 0) return "soft_cap has no kernel";
  if (given(x.key_bias) || given(x.q_bias) || given(x.alibi_slopes) || given(x.relative_bias)) {
    return "biases have no kernel";
  }
  if (given(x.block_start)) return "block lists have no kernel";
  if (given(x.axes)) return "grids have no kernel";
  if (given(x.kv_lengths)) return "kv_lengths has no kernel";
  // Queries that see no key, which PyTorch's kernels answer differently.
  const bool rule = c.options.causal || first_of(x.head_window, c.options.window) > 0;
  for (int64_t n = 0; n < kernel::attend_sequences(c); ++n) {
    const int64_t* q = c.head.cu_seqlens;
    const int64_t queries = q ? q[n + 1] - q[n] : x.q.sizes[1];
    const int64_t keys = kernel::attend_keys(c, n).count;
    if (keys == 0 || (rule && queries > keys)) return "a query that sees no key";
  }
  return nullptr;
}

// Whether the rule needs a mask: flash attention knows one window, and no sinks beside it.
bool is_masked(const kernel::AttendCall& c) {
  return !same_rule(c) || (first_of(c.in.head_window, c.options.window) > 0 &&
                           first_of(c.in.head_sinks, c.options.sinks) > 0);
}

const char* refuses_flash(const void* call, int32_t /*pass*/) {
  const auto& c = *static_cast<const kernel::AttendCall*>(call);
  if (const char* reason = refuses_any(c)) return reason;
  if (c.in.q.dtype == HEED_FLOAT32) return "it takes bfloat16 and float16";
  if (is_masked(c)) return "it has no sinks and no windows for each head";
  const int64_t dim = c.in.q.sizes[3];
  if (dim != c.in.v.sizes[3]) return "D and Dv must be equal";
  if (dim % 8 != 0 || dim > 256) return "D must be a multiple of 8, at most 256";
  return nullptr;
}

const char* refuses_efficient(const void* call, int32_t /*pass*/) {
  const auto& c = *static_cast<const kernel::AttendCall*>(call);
  const auto& x = c.in;
  const int64_t* q = x.q.sizes;
  if (q[0] * q[1] * q[2] * x.k.sizes[1] == 0) return nullptr;  // nothing to compute
  if (const char* reason = refuses_any(c)) return reason;
  const int64_t aligned = c.in.q.dtype == HEED_FLOAT32 ? 4 : 8;
  if (c.in.q.sizes[3] % aligned != 0 || c.in.v.sizes[3] % aligned != 0) {
    return "head dims must be multiples of 4 (float32) or 8";
  }
  const bool mask = is_masked(c) || first_of(c.in.head_window, c.options.window) > 0;
  if (mask && c.head.cu_seqlens) return "packs with windows have no kernel";
  return nullptr;
}

// The offsets of a pack as the kernels want them, and the longest of its sequences.
struct Packs {
  std::optional<at::Tensor> q, k;
  int64_t longest_q = 0, longest_k = 0;

  Packs(const AttendTensors& x, const AttendShape& s, const at::Tensor& cu_seqlens_q) {
    for (int64_t n = 0; n < s.sequences; ++n) {
      longest_q = std::max(longest_q, s.queries(n));
      longest_k = std::max(longest_k, s.keys(n));
    }
    if (!s.packed) return;
    q = cu_seqlens_q.to(x.q.device(), at::kInt);
    k = x.cu_seqlens_k.defined() ? x.cu_seqlens_k.to(x.q.device(), at::kInt) : q;
  }
};

// Both kernels give out its gradient; that of lse comes from the naive form, where it is asked for.
struct CallHolder : torch::CustomClassHolder {
  AttendTensors x;
  AttendSettings o;
  at::Tensor cu_seqlens_q;
};

class LseFunction : public torch::autograd::Function<LseFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& v, const at::Tensor& lse,
                            const c10::intrusive_ptr<CallHolder>& call) {
    ctx->save_for_backward({q, k, v});
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return lse.clone();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto capsule = ctx->saved_data["call"].toCapsule();
    const auto& call = *static_cast<const CallHolder*>(capsule.get());
    AttendTensors x = call.x;
    x.q = saved[0], x.k = saved[1], x.v = saved[2];
    const auto g = attend_lse_backward(x, call.o, call.cu_seqlens_q, grads[0]);
    return {g[0], g[1], g[2], at::Tensor(), at::Tensor()};
  }
};

// Fills out and lse; lse with its gradient where autograd is on.
void finish(AttendTensors& x, const AttendSettings& o, const at::Tensor& cu_seqlens_q,
            const at::Tensor& out, const at::Tensor& lse) {
  x.out = out, x.lse = lse;
  if (!at::GradMode::is_enabled() || !out.requires_grad() || lse.requires_grad()) return;
  const auto call = c10::make_intrusive<CallHolder>();
  call->x = x;
  call->x.q = call->x.k = call->x.v = call->x.out = call->x.lse = at::Tensor();
  call->o = o;
  call->cu_seqlens_q = cu_seqlens_q;
  x.lse = LseFunction::apply(x.q, x.k, x.v, lse, call);
}

void run_flash(AttendTensors& x, const AttendSettings& o, const at::Tensor& cu_seqlens_q) {
  if (x.q.numel() == 0 || x.k.numel() == 0) return naive::attend(x, o, cu_seqlens_q);
  const AttendShape s(x, o, cu_seqlens_q);
  const Packs packs(x, s, cu_seqlens_q);
  const auto packed = [&](const at::Tensor& t) { return s.packed ? rows(t).squeeze(0) : rows(t); };
  std::optional<int64_t> left, right;
  if (const int64_t window = s.head_window[0]; window > 0) {
    left = window - 1;
    right = o.causal ? 0 : window - 1;
  }
  const auto result = at::_flash_attention_forward(packed(x.q), packed(x.k), packed(x.v), packs.q,
                                                   packs.k, packs.longest_q, packs.longest_k, 0.0,
                                                   o.causal != 0, false, s.scale, left, right);
  at::Tensor out = std::get<0>(result), lse = std::get<1>(result).detach();
  if (s.packed) {
    return finish(x, o, cu_seqlens_q, out.unsqueeze(0), lse.slice(1, 0, s.tq).t().unsqueeze(0));
  }
  finish(x, o, cu_seqlens_q, out, lse.slice(2, 0, s.tq).transpose(1, 2));
}

void run_efficient(AttendTensors& x, const AttendSettings& o, const at::Tensor& cu_seqlens_q) {
  if (x.q.numel() == 0 || x.k.numel() == 0) return naive::attend(x, o, cu_seqlens_q);
  const AttendShape s(x, o, cu_seqlens_q);
  if (!s.same_window() || s.head_window[0] > 0) {
    const auto [out, lse] = attend_cuda_masked(x.q, x.k, x.v, o, s);
    return finish(x, o, cu_seqlens_q, out, lse);
  }
  const Packs packs(x, s, cu_seqlens_q);
  constexpr int64_t kNoMask = 0, kCausalFromBottomRight = 2;
  const auto result = at::_efficient_attention_forward(
      rows(x.q), for_query_heads(x.k, s), for_query_heads(x.v, s), std::nullopt, packs.q, packs.k,
      packs.longest_q, packs.longest_k, 0.0, o.causal ? kCausalFromBottomRight : kNoMask, true,
      s.scale);
  const at::Tensor out = std::get<0>(result);
  at::Tensor lse = std::get<1>(result).detach();  // [B or N, H, queries rounded up]
  if (!s.packed) return finish(x, o, cu_seqlens_q, out, lse.slice(2, 0, s.tq).transpose(1, 2));
  std::vector<at::Tensor> parts;
  for (int64_t n = 0; n < s.sequences; ++n) {
    parts.push_back(lse.select(0, n).slice(1, 0, s.queries(n)).t());
  }
  finish(x, o, cu_seqlens_q, out, at::cat(parts).unsqueeze(0));
}

}  // namespace

const AttendRow kAttendFlash = {"pytorch-flash", 20, refuses_flash, run_flash};
const AttendRow kAttendEfficient = {"pytorch-efficient", 10, refuses_efficient, run_efficient};

}  // namespace heed::op
