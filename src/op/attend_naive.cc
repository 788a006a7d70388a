// The naive form of attend and the check of its arguments.
#include <ATen/ATen.h>

#include "io/error.h"
#include "op/attend_shape.h"
#include "op/describe.h"

namespace heed::op {
namespace {

void expect_sizes(const at::Tensor& t, const char* name, std::initializer_list<int64_t> sizes,
                  const char* meaning) {
  if (t.sizes() == at::IntArrayRef(sizes.begin(), sizes.size())) return;
  throw UsageError("attend: {} has shape {}, expected {} = {}", name, sizes_of(t), meaning,
                   sizes_of(at::IntArrayRef(sizes.begin(), sizes.size())));
}

std::vector<int64_t> per_head(const at::Tensor& values, int64_t fallback, int64_t heads,
                              const char* name) {
  std::vector<int64_t> result(heads, fallback);
  if (values.defined()) {
    if (values.scalar_type() != at::kLong) throw UsageError("attend: {} must be int64", name);
    expect_sizes(values, name, {heads}, "[Hk]");
    const at::Tensor host = values.cpu().contiguous();
    result.assign(host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + heads);
  }
  for (int64_t x : result) {
    if (x < 0) throw UsageError("attend: {} is {}, must not be negative", name, x);
  }
  return result;
}

}  // namespace

std::vector<int64_t> read_offsets(const at::Tensor& cu_seqlens, int64_t end, const char* name) {
  if (cu_seqlens.scalar_type() != at::kLong || cu_seqlens.dim() != 1 || cu_seqlens.size(0) < 1) {
    throw UsageError("{} has shape {} and type {}, expected int64 [N+1]", name,
                     sizes_of(cu_seqlens), c10::toString(cu_seqlens.scalar_type()));
  }
  const at::Tensor host = cu_seqlens.cpu().contiguous();
  const int64_t* data = host.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets(data, data + host.numel());
  if (offsets.front() != 0) throw UsageError("{} starts at {}, expected 0", name, offsets.front());
  for (size_t n = 1; n < offsets.size(); ++n) {
    if (offsets[n] < offsets[n - 1]) {
      throw UsageError("{} falls from {} to {} at entry {}", name, offsets[n - 1], offsets[n], n);
    }
  }
  if (offsets.back() != end) {
    throw UsageError("{} ends at {}, expected {} (the number of tokens)", name, offsets.back(),
                     end);
  }
  return offsets;
}

bool AttendShape::same_window() const {
  for (size_t h = 1; h < head_window.size(); ++h) {
    if (head_window[h] != head_window[0] || head_sinks[h] != head_sinks[0]) return false;
  }
  return true;
}

double AttendShape::sigmoid_bias(const AttendOptions& options, int64_t sequence) const {
  if (options.bias) return *options.bias;
  const int64_t n = keys(sequence);
  return n > 0 ? -std::log(static_cast<double>(n)) : 0.0;
}

AttendShape check_attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const AttendOptions& options) {
  if (q.dim() != 4) throw UsageError("attend: q has shape {}, expected [B,Tq,Hq,D]", sizes_of(q));
  if (k.dim() != 4) throw UsageError("attend: k has shape {}, expected [B,Tk,Hk,D]", sizes_of(k));
  if (v.dim() != 4) throw UsageError("attend: v has shape {}, expected [B,Tk,Hk,Dv]", sizes_of(v));
  AttendShape s;
  s.batch = q.size(0);
  s.tq = q.size(1);
  s.heads = q.size(2);
  s.dim = q.size(3);
  s.tk = k.size(1);
  s.kv_heads = k.size(2);
  s.value_dim = v.size(3);
  expect_sizes(k, "k", {s.batch, s.tk, s.kv_heads, s.dim}, "[B,Tk,Hk,D]");
  expect_sizes(v, "v", {s.batch, s.tk, s.kv_heads, s.value_dim}, "[B,Tk,Hk,Dv]");
  if (s.dim < 1 || s.value_dim < 1) throw UsageError("attend: D and Dv must be at least 1");
  if (s.kv_heads < 1 || s.heads % s.kv_heads != 0) {
    throw UsageError("attend: q has {} heads and k {}; the first must be a multiple of the second",
                     s.heads, s.kv_heads);
  }
  if (q.scalar_type() != k.scalar_type() || q.scalar_type() != v.scalar_type()) {
    throw UsageError("attend: q, k and v must have one dtype");
  }
  s.group = s.heads / s.kv_heads;
  s.scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(s.dim)));
  if (options.soft_cap < 0) throw UsageError("attend: soft_cap must not be negative");
  if (options.key_bias.defined()) {
    expect_sizes(options.key_bias, "key_bias", {s.batch, s.tk, s.heads}, "[B,Tk,Hq]");
  }
  if (options.alibi_slopes.defined()) {
    expect_sizes(options.alibi_slopes, "alibi_slopes", {s.heads}, "[Hq]");
  }
  s.head_window = per_head(options.head_window, options.window, s.kv_heads, "window");
  s.head_sinks = per_head(options.head_sinks, options.sinks, s.kv_heads, "sinks");
  s.packed = options.cu_seqlens_q.defined();
  s.sequences = s.batch;
  if (options.cu_seqlens_k.defined() && !s.packed) {
    throw UsageError("attend: cu_seqlens_k needs cu_seqlens_q");
  }
  if (s.packed) {
    if (s.batch != 1) throw UsageError("attend: cu_seqlens needs B = 1, q has B = {}", s.batch);
    s.q_offset = read_offsets(options.cu_seqlens_q, s.tq, "cu_seqlens_q");
    s.k_offset = options.cu_seqlens_k.defined()
                     ? read_offsets(options.cu_seqlens_k, s.tk, "cu_seqlens_k")
                     : read_offsets(options.cu_seqlens_q, s.tk, "cu_seqlens_k");
    if (s.q_offset.size() != s.k_offset.size()) {
      throw UsageError("attend: cu_seqlens_q has {} entries and cu_seqlens_k {}, expected as many",
                       s.q_offset.size(), s.k_offset.size());
    }
    s.sequences = static_cast<int64_t>(s.q_offset.size()) - 1;
  }
  if (options.block_start.defined()) {
    if (options.q_block < 1 || options.k_block < 1 || !options.block_index.defined()) {
      throw UsageError("attend: block_start needs block_index, q_block and k_block");
    }
    int64_t longest = 0;
    for (int64_t n = 0; n < s.sequences; ++n) longest = std::max(longest, s.queries(n));
    const int64_t blocks = (longest + options.q_block - 1) / options.q_block;
    expect_sizes(options.block_start, "block_start", {s.sequences, s.kv_heads, blocks + 1},
                 "[N,Hk,blocks+1]");
    if (options.block_start.scalar_type() != at::kLong ||
        options.block_index.scalar_type() != at::kInt || options.block_index.dim() != 1) {
      throw UsageError("attend: block_start must be int64 and block_index int32 [M]");
    }
    const at::Tensor start = options.block_start.cpu().contiguous();
    const at::Tensor index = options.block_index.cpu().contiguous();
    const int64_t* first = start.const_data_ptr<int64_t>();
    const int32_t* list = index.const_data_ptr<int32_t>();
    for (int64_t row = 0; row < s.sequences * s.kv_heads; ++row, first += blocks + 1) {
      for (int64_t i = 0; i < blocks; ++i) {
        if (first[i] < 0 || first[i + 1] < first[i] || first[i + 1] > index.numel()) {
          throw UsageError("attend: block_start must rise within 0 and {} (block_index's length)",
                           index.numel());
        }
        for (int64_t e = first[i]; e < first[i + 1]; ++e) {
          if (list[e] < 0 || (e > first[i] && list[e] <= list[e - 1])) {
            throw UsageError("attend: block_index must rise within each list, entry {} is {}", e,
                             list[e]);
          }
        }
      }
    }
  }
  return s;
}

at::Tensor attend_visible(int64_t tq, int64_t tk, bool causal, int64_t window, int64_t sinks,
                          const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor p = at::arange(tq, options).add(tk - tq).unsqueeze(1);  // [Tq,1]
  const at::Tensor j = at::arange(tk, options).unsqueeze(0);               // [1,Tk]
  at::Tensor visible = causal ? j.le(p) : at::ones({tq, tk}, options.dtype(at::kBool));
  if (window > 0) {
    at::Tensor near = j.gt(p.sub(window));
    if (!causal) near = near.logical_and(j.lt(p.add(window)));
    visible = visible.logical_and(near.logical_or(j.lt(sinks)));
  }
  return visible;
}

namespace {

// bool [Tq,Tk]: the block lists of one sequence and KV head.
at::Tensor block_visible(const AttendOptions& options, int64_t sequence, int64_t kv_head,
                         int64_t tq, int64_t tk) {
  const at::Tensor start =
      options.block_start.cpu().select(0, sequence).select(0, kv_head).contiguous();
  const at::Tensor index = options.block_index.cpu().contiguous();
  const int64_t* s = start.const_data_ptr<int64_t>();
  const int32_t* x = index.const_data_ptr<int32_t>();
  at::Tensor visible = at::zeros({tq, tk}, at::kBool);
  for (int64_t i = 0; i * options.q_block < tq; ++i) {
    const int64_t q_end = std::min((i + 1) * options.q_block, tq);
    for (int64_t e = s[i]; e < s[i + 1]; ++e) {
      const int64_t k_begin = std::min<int64_t>(x[e] * options.k_block, tk);
      const int64_t k_end = std::min<int64_t>(k_begin + options.k_block, tk);
      visible.slice(0, i * options.q_block, q_end).slice(1, k_begin, k_end).fill_(true);
    }
  }
  return visible;
}

// One sequence (or a batch of equal lengths): q [B,Tq,Hq,D] -> out [B,Tq,Hq,Dv], lse [B,Tq,Hq], in
// the dtype of computation.
std::pair<at::Tensor, at::Tensor> naive_sequence(const at::Tensor& q, const at::Tensor& k,
                                                 const at::Tensor& v, const at::Tensor& key_bias,
                                                 const at::Tensor& slopes, const AttendOptions& o,
                                                 const AttendShape& s, int64_t first_sequence) {
  const int64_t b = q.size(0), tq = q.size(1), tk = k.size(1), hk = s.kv_heads, g = s.group;
  const double inf = std::numeric_limits<double>::infinity();
  if (tq == 0 || tk == 0) {
    return {
        at::zeros({b, tq, s.heads, s.value_dim}, q.options()),
        at::full({b, tq, s.heads}, o.weight == kernel::Weight::kSoftmax ? -inf : 0.0, q.options())};
  }
  const at::Tensor qh = q.reshape({b, tq, hk, g, s.dim}).permute({0, 2, 3, 1, 4});  // [B,Hk,G,Tq,D]
  const at::Tensor kh = k.permute({0, 2, 3, 1}).unsqueeze(2);                       // [B,Hk,1,D,Tk]
  const at::Tensor vh = v.permute({0, 2, 1, 3}).unsqueeze(2);  // [B,Hk,1,Tk,Dv]
  const auto longs = at::TensorOptions().dtype(at::kLong).device(q.device());
  const at::Tensor j = at::arange(tk, longs);

  // What is hidden from query rows [begin, end): [1 or B, 1 or Hk, 1, rows, Tk]
  const bool lists = o.block_start.defined();
  at::Tensor visible;  // all rows
  if (s.same_window() && !lists) {
    visible = attend_visible(tq, tk, o.causal, s.head_window[0], s.head_sinks[0], q.device())
                  .view({1, 1, 1, tq, tk});
  } else {
    std::vector<at::Tensor> of_sequence;
    for (int64_t n = 0; n < (lists ? b : 1); ++n) {
      std::vector<at::Tensor> of_head;
      for (int64_t h = 0; h < hk; ++h) {
        at::Tensor m =
            attend_visible(tq, tk, o.causal, s.head_window[h], s.head_sinks[h], q.device());
        if (lists) {
          m = m.logical_and(block_visible(o, first_sequence + n, h, tq, tk).to(q.device()));
        }
        of_head.push_back(m);
      }
      of_sequence.push_back(at::stack(of_head).unsqueeze(1));
    }
    visible = at::stack(of_sequence);
  }
  at::Tensor bias, bias_hidden;  // [B,Hk,G,1,Tk]
  if (key_bias.defined()) {
    bias = key_bias.reshape({b, tk, hk, g}).permute({0, 2, 3, 1}).unsqueeze(3);
    bias_hidden = bias.detach().eq(-inf);
    bias = bias.masked_fill(bias_hidden, 0.0);
  }
  const double sigmoid_bias =
      o.weight == kernel::Weight::kSigmoid ? s.sigmoid_bias(o, first_sequence) : 0.0;

  const int64_t row_bytes = b * s.heads * tk * static_cast<int64_t>(q.element_size());
  const int64_t rows = std::clamp<int64_t>((int64_t{128} << 20) / row_bytes, 1, tq);
  std::vector<at::Tensor> outs, lses;
  for (int64_t begin = 0; begin < tq; begin += rows) {
    const int64_t end = std::min(begin + rows, tq);
    at::Tensor x = at::matmul(qh.slice(3, begin, end).mul(s.scale), kh);  // [B,Hk,G,rows,Tk]
    if (o.soft_cap > 0) x = at::tanh(x.div(o.soft_cap)).mul(o.soft_cap);
    if (slopes.defined()) {
      const at::Tensor p = at::arange(begin, end, longs).add(tk - tq).unsqueeze(1);
      const at::Tensor distance = p.sub(j).abs().to(x.scalar_type());
      x = x.sub(slopes.reshape({hk, g, 1, 1}).mul(distance));
    }
    at::Tensor hidden = visible.slice(3, begin, end).logical_not();
    if (bias.defined()) {
      x = x.add(bias);
      hidden = hidden.logical_or(bias_hidden);
    }
    at::Tensor weight, lse;
    if (o.weight == kernel::Weight::kSigmoid) {
      weight = at::sigmoid(x.add(sigmoid_bias)).masked_fill(hidden, 0.0);
      lse = at::zeros({b, hk, g, end - begin}, q.options());
    } else {
      x = x.masked_fill(hidden, -inf);
      at::Tensor m = x.detach().amax(-1, true);
      m = m.masked_fill(m.eq(-inf), 0.0);
      const at::Tensor e = at::exp(x.sub(m));
      const at::Tensor sum = e.sum(-1, true);
      weight = e.div(sum.masked_fill(sum.detach().eq(0), 1.0));
      lse = at::log(sum.detach()).add(m).squeeze(-1);
    }
    outs.push_back(at::matmul(weight, vh));
    lses.push_back(lse);
  }
  const at::Tensor out = outs.size() == 1 ? outs[0] : at::cat(outs, 3);
  const at::Tensor lse = lses.size() == 1 ? lses[0] : at::cat(lses, 3);
  return {out.permute({0, 3, 1, 2, 4}).reshape({b, tq, s.heads, s.value_dim}),
          lse.permute({0, 3, 1, 2}).reshape({b, tq, s.heads})};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> attend_naive(const at::Tensor& q, const at::Tensor& k,
                                                const at::Tensor& v, const AttendOptions& options) {
  const AttendShape s = check_attend(q, k, v, options);
  const at::ScalarType compute = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor qc = q.to(compute), kc = k.to(compute), vc = v.to(compute);
  at::Tensor bias, slopes;
  if (options.key_bias.defined()) bias = options.key_bias.to(compute);
  if (options.alibi_slopes.defined()) slopes = options.alibi_slopes.to(compute);
  at::Tensor out, lse;
  if (!s.packed) {
    std::tie(out, lse) = naive_sequence(qc, kc, vc, bias, slopes, options, s, 0);
  } else {
    std::vector<at::Tensor> outs, lses;
    for (int64_t n = 0; n < s.sequences; ++n) {
      const auto [o, l] =
          naive_sequence(qc.slice(1, s.q_offset[n], s.q_offset[n + 1]),
                         kc.slice(1, s.k_offset[n], s.k_offset[n + 1]),
                         vc.slice(1, s.k_offset[n], s.k_offset[n + 1]),
                         bias.defined() ? bias.slice(1, s.k_offset[n], s.k_offset[n + 1]) : bias,
                         slopes, options, s, n);
      outs.push_back(o);
      lses.push_back(l);
    }
    out = outs.empty() ? at::zeros({1, 0, s.heads, s.value_dim}, qc.options()) : at::cat(outs, 1);
    lse = lses.empty() ? at::zeros({1, 0, s.heads}, qc.options()) : at::cat(lses, 1);
  }
  return {out.to(q.scalar_type()), lse.detach()};
}

}  // namespace heed::op
