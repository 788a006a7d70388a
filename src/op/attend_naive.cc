// The naive form of attend, and what its forms read of a call.
#include <ATen/ATen.h>

#include "io/error.h"
#include "op/attend_shape.h"
#include "op/describe.h"

namespace heed::op {

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

double AttendShape::sigmoid_bias(const std::optional<double>& given, int64_t sequence) const {
  if (given) return *given;
  const int64_t n = keys(sequence);
  return n > 0 ? -std::log(static_cast<double>(n)) : 0.0;
}

namespace {

std::vector<int64_t> list_of(const at::Tensor& t) {
  const at::Tensor host = t.cpu().contiguous();
  const int64_t* data = host.const_data_ptr<int64_t>();
  return {data, data + host.numel()};
}

std::vector<int64_t> per_head(const at::Tensor& values, int64_t fallback, int64_t heads) {
  return values.defined() ? list_of(values) : std::vector<int64_t>(heads, fallback);
}

}  // namespace

AttendShape::AttendShape(const AttendTensors& x, const AttendSettings& o,
                         const at::Tensor& cu_seqlens_q)
    : batch(x.q.size(0)),
      tq(x.q.size(1)),
      tk(x.k.size(1)),
      heads(x.q.size(2)),
      kv_heads(x.k.size(2)),
      group(heads / kv_heads),
      dim(x.q.size(3)),
      value_dim(x.v.size(3)),
      packed(cu_seqlens_q.defined()),
      sequences(batch),
      head_window(per_head(x.head_window, o.window, kv_heads)),
      head_sinks(per_head(x.head_sinks, o.sinks, kv_heads)),
      scale(std::isnan(o.scale) ? 1.0 / std::sqrt(static_cast<double>(dim)) : o.scale) {
  if (packed) {
    q_offset = list_of(cu_seqlens_q);
    k_offset = x.cu_seqlens_k.defined() ? list_of(x.cu_seqlens_k) : q_offset;
    sequences = static_cast<int64_t>(q_offset.size()) - 1;
  }
  if (x.kv_lengths.defined()) k_length = list_of(x.kv_lengths);
  if (!x.axes.defined()) return;
  const std::vector<int64_t> flat = list_of(x.axes);
  for (size_t i = 0; i < flat.size(); i += 4) {
    axes.push_back({flat[i], flat[i + 1], flat[i + 2], flat[i + 3] != 0});
  }
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

// bool [Tq,Tk]: the product of the rules of the axes (kernel::Axis says them).
at::Tensor grid_visible(const std::vector<kernel::Axis>& axes, int64_t tq, int64_t tk,
                        const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  at::Tensor p = at::arange(tq, options).add(tk - tq), j = at::arange(tk, options);
  at::Tensor visible = at::ones({tq, tk}, options.dtype(at::kBool));
  for (size_t i = axes.size(); i-- > 0;) {
    const auto [length, window, stride, causal] = axes[i];
    const at::Tensor u = p.remainder(length).unsqueeze(1), place = j.remainder(length).unsqueeze(0);
    p = at::floor_divide(p, length), j = at::floor_divide(j, length);
    const at::Tensor group = at::floor_divide(u, stride).mul(stride);
    at::Tensor begin, end;
    if (causal) {
      begin = group.add(stride - 1).clamp_max(length - 1).sub(window - 1).clamp_min(0);
      end = u.add(1);
    } else {
      begin = group.add(stride / 2).clamp_max(length - 1).sub(window / 2).clamp(0, length - window);
      end = begin.add(window);
    }
    visible = visible.logical_and(place.ge(begin)).logical_and(place.lt(end));
  }
  return visible;
}

// bool [Tq,Tk]: the block lists of one sequence and head.
at::Tensor block_visible(const AttendTensors& x, const AttendSettings& o, int64_t sequence,
                         int64_t head, int64_t tq, int64_t tk) {
  const at::Tensor start = x.block_start.cpu().select(0, sequence).select(0, head).contiguous();
  const at::Tensor index = x.block_index.cpu().contiguous();
  const int64_t* s = start.const_data_ptr<int64_t>();
  const int32_t* list = index.const_data_ptr<int32_t>();
  at::Tensor visible = at::zeros({tq, tk}, at::kBool);
  for (int64_t i = 0; i * o.q_block < tq; ++i) {
    const int64_t q_end = std::min((i + 1) * o.q_block, tq);
    for (int64_t e = s[i]; e < s[i + 1]; ++e) {
      const int64_t k_begin = std::min<int64_t>(list[e] * o.k_block, tk);
      const int64_t k_end = std::min<int64_t>(k_begin + o.k_block, tk);
      visible.slice(0, i * o.q_block, q_end).slice(1, k_begin, k_end).fill_(true);
    }
  }
  return visible;
}

// What query rows see: bool [1 or B, Hk, 1 or G, Tq, Tk], Hk 1 where all heads have one rule.
at::Tensor visible_pairs(const AttendTensors& x, const AttendSettings& o, const AttendShape& s,
                         int64_t sequence, int64_t batch, int64_t tq, int64_t tk,
                         const at::Device& device) {
  const bool lists = x.block_start.defined();
  const auto rule = [&](int64_t h) {
    if (!s.axes.empty()) return grid_visible(s.axes, tq, tk, device);
    return attend_visible(tq, tk, o.causal, s.head_window[h], s.head_sinks[h], device);
  };
  if (s.same_window() && !lists) return rule(0).view({1, 1, 1, tq, tk});
  const int64_t width = lists && x.block_start.size(1) != s.kv_heads ? s.group : 1;
  std::vector<at::Tensor> of_sequence;
  for (int64_t n = 0; n < (lists ? batch : 1); ++n) {
    std::vector<at::Tensor> of_head;
    for (int64_t h = 0; h < s.kv_heads * width; ++h) {
      at::Tensor m = rule(h / width);
      if (lists) {
        const at::Tensor listed = block_visible(x, o, sequence + n, h, tq, tk).to(device);
        m = o.any ? m.logical_or(listed) : m.logical_and(listed);
        if (o.any && o.causal) m = m.logical_and(attend_visible(tq, tk, true, 0, 0, device));
      }
      of_head.push_back(m);
    }
    of_sequence.push_back(at::stack(of_head).view({s.kv_heads, width, tq, tk}));
  }
  return at::stack(of_sequence);
}

// Entries [h, P-1 + j - p_i] of a table for query rows [begin, end): [Hk,G,rows,Tk]. Pairs beyond
// the table, which are hidden, read its ends.
at::Tensor by_distance(const at::Tensor& table, const AttendShape& s, int64_t begin, int64_t end,
                       int64_t tq, int64_t tk) {
  const auto longs = at::TensorOptions().dtype(at::kLong).device(table.device());
  const int64_t reach = (table.size(1) + 1) / 2;
  const at::Tensor p = at::arange(begin, end, longs).add(tk - tq).unsqueeze(1);
  const at::Tensor entry =
      at::arange(tk, longs).sub(p).add(reach - 1).clamp(0, 2 * reach - 2).view({-1});
  return table.index_select(1, entry).view({s.kv_heads, s.group, end - begin, tk});
}

// The float32 tensors of the options in the dtype of computation, for one sequence.
struct NaiveTensors {
  at::Tensor key_bias, q_bias, slopes, relative_bias, relative_scale;
};

// What is added to every logit of a weight that is not normalised.
double shift_of(const AttendSettings& o, const AttendShape& s, int64_t sequence) {
  if (!std::isnan(o.bias)) return o.bias;
  const bool sigmoid = o.weight == static_cast<int64_t>(kernel::Weight::kSigmoid);
  return sigmoid ? s.sigmoid_bias(std::nullopt, sequence) : 0.0;
}

// Such a weight.
at::Tensor weight_of(kernel::Weight kind, const AttendSettings& o, const at::Tensor& x) {
  if (kind == kernel::Weight::kSigmoid) return at::sigmoid(x);
  const std::string_view function = kernel::kGenericNames[o.function];
  if (function == "softplus") return at::softplus(x, 1, 100);
  if (function == "relu") return o.power == 1 ? at::relu(x) : at::relu(x).pow(o.power);
  throw UsageError("attend: the function {} has no naive form", function);
}

// One sequence (or a batch of equal lengths): q [B,Tq,Hq,D] -> out [B,Tq,Hq,Dv], lse [B,Tq,Hq], in
// the dtype of computation.
std::pair<at::Tensor, at::Tensor> naive_sequence(const at::Tensor& q, const at::Tensor& k,
                                                 const at::Tensor& v, const NaiveTensors& tensors,
                                                 const AttendTensors& call, const AttendSettings& o,
                                                 const AttendShape& s, int64_t first_sequence) {
  const int64_t b = q.size(0), tq = q.size(1), tk = k.size(1), hk = s.kv_heads, g = s.group;
  const double inf = std::numeric_limits<double>::infinity();
  const auto kind = static_cast<kernel::Weight>(o.weight);
  const bool softmax = kernel::normalised(kind);
  if (tq == 0 || tk == 0) {
    return {at::zeros({b, tq, s.heads, s.value_dim}, q.options()),
            at::full({b, tq, s.heads}, softmax ? -inf : 0.0, q.options())};
  }
  const at::Tensor qh = q.reshape({b, tq, hk, g, s.dim}).permute({0, 2, 3, 1, 4});  // [B,Hk,G,Tq,D]
  const at::Tensor kh = k.permute({0, 2, 3, 1}).unsqueeze(2);                       // [B,Hk,1,D,Tk]
  const at::Tensor vh = v.permute({0, 2, 1, 3}).unsqueeze(2);  // [B,Hk,1,Tk,Dv]
  const auto longs = at::TensorOptions().dtype(at::kLong).device(q.device());
  const at::Tensor j = at::arange(tk, longs);
  const at::Tensor visible = visible_pairs(call, o, s, first_sequence, b, tq, tk, q.device());
  at::Tensor bias, bias_hidden, q_bias;  // [B,Hk,G,1,Tk], [B,Hk,G,Tq,1]
  if (tensors.key_bias.defined()) {
    bias = tensors.key_bias.reshape({b, tk, hk, g}).permute({0, 2, 3, 1}).unsqueeze(3);
    bias_hidden = bias.detach().eq(-inf);
    bias = bias.masked_fill(bias_hidden, 0.0);
  }
  if (tensors.q_bias.defined()) {
    q_bias = tensors.q_bias.reshape({b, tq, hk, g}).permute({0, 2, 3, 1}).unsqueeze(4);
  }
  const double shift = shift_of(o, s, first_sequence);

  const int64_t row_bytes = b * s.heads * tk * static_cast<int64_t>(q.element_size());
  const int64_t rows =
      std::clamp<int64_t>((int64_t{128} << 20) / std::max<int64_t>(row_bytes, 1), 1, tq);
  std::vector<at::Tensor> outs, lses;
  for (int64_t begin = 0; begin < tq; begin += rows) {
    const int64_t end = std::min(begin + rows, tq);
    at::Tensor x = at::matmul(qh.slice(3, begin, end).mul(s.scale), kh);  // [B,Hk,G,rows,Tk]
    if (o.soft_cap > 0) x = at::tanh(x.div(o.soft_cap)).mul(o.soft_cap);
    if (tensors.slopes.defined()) {
      const at::Tensor p = at::arange(begin, end, longs).add(tk - tq).unsqueeze(1);
      const at::Tensor distance = p.sub(j).abs().to(x.scalar_type());
      x = x.sub(tensors.slopes.reshape({hk, g, 1, 1}).mul(distance));
    }
    if (tensors.relative_bias.defined()) {
      x = x.add(by_distance(tensors.relative_bias, s, begin, end, tq, tk));
    }
    if (q_bias.defined()) x = x.add(q_bias.slice(3, begin, end));
    at::Tensor hidden = visible.slice(3, begin, end).logical_not();
    if (bias.defined()) {
      x = x.add(bias);
      hidden = hidden.logical_or(bias_hidden);
    }
    at::Tensor weight, lse;
    if (!softmax) {
      weight = weight_of(kind, o, x.add(shift)).masked_fill(hidden, 0.0);
      lse = at::zeros({b, hk, g, end - begin}, q.options());
    } else {
      x = x.masked_fill(hidden, -inf);
      at::Tensor m = x.detach().amax(-1, true);
      m = m.masked_fill(m.eq(-inf), 0.0);
      const at::Tensor e = at::exp(x.sub(m));
      const at::Tensor sum = e.sum(-1, true);
      const at::Tensor blind = sum.detach().eq(0);
      const at::Tensor seen = sum.masked_fill(blind, 1.0);
      weight = e.div(seen);
      lse = at::log(seen).add(m).masked_fill(blind, -inf).squeeze(-1);
      if (tensors.relative_scale.defined()) {
        weight = weight.mul(by_distance(tensors.relative_scale, s, begin, end, tq, tk));
      }
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

void naive::attend(AttendTensors& x, const AttendSettings& o, const at::Tensor& cu_seqlens_q) {
  const AttendShape s(x, o, cu_seqlens_q);
  const at::ScalarType type = x.q.scalar_type();
  const at::ScalarType compute = type == at::kDouble ? at::kDouble : at::kFloat;
  const auto wide = [&](const at::Tensor& t) { return t.defined() ? t.to(compute) : t; };
  const at::Tensor q = wide(x.q), k = wide(x.k), v = wide(x.v);
  const NaiveTensors all{wide(x.key_bias), wide(x.q_bias), wide(x.alibi_slopes),
                         wide(x.relative_bias), wide(x.relative_scale)};
  if (!s.packed && s.k_length.empty()) {
    auto [out, lse] = naive_sequence(q, k, v, all, x, o, s, 0);
    x.out = out.to(type), x.lse = lse;
    return;
  }
  // Sequence by sequence: the rows of a pack, or of a batch whose keys differ in number.
  const int64_t along = s.packed ? 1 : 0, rows = s.packed ? 0 : s.tq;
  const int64_t none = s.packed ? 1 : 0;
  std::vector<at::Tensor> outs = {at::zeros({none, rows, s.heads, s.value_dim}, q.options())};
  std::vector<at::Tensor> lses = {at::zeros({none, rows, s.heads}, q.options())};
  for (int64_t n = 0; n < s.sequences; ++n) {
    const auto of_queries = [&](const at::Tensor& t) {
      if (!t.defined()) return t;
      return s.packed ? t.slice(1, s.q_offset[n], s.q_offset[n + 1]) : t.slice(0, n, n + 1);
    };
    const auto of_keys = [&](const at::Tensor& t) {
      if (!t.defined()) return t;
      return s.packed ? t.slice(1, s.k_offset[n], s.k_offset[n + 1])
                      : t.slice(0, n, n + 1).slice(1, 0, s.k_length[n]);
    };
    NaiveTensors own = all;
    own.key_bias = of_keys(all.key_bias);
    own.q_bias = of_queries(all.q_bias);
    const auto [out, lse] = naive_sequence(of_queries(q), of_keys(k), of_keys(v), own, x, o, s, n);
    outs.push_back(out);
    lses.push_back(lse);
  }
  x.out = at::cat(outs, along).to(type);
  x.lse = at::cat(lses, along);
}

}  // namespace heed::op
