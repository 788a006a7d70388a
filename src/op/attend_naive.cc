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

// Tables by distance reach from every query to every key that it may see.
void check_tables(const AttendOptions& o, const AttendShape& s) {
  if ((o.weight == kernel::Weight::kUrpe) != o.relative_scale.defined()) {
    throw UsageError("attend: the weight urpe and relative_scale come together");
  }
  int64_t queries = 0, keys = 0;
  for (int64_t n = 0; n < s.sequences; ++n) {
    queries = std::max(queries, s.queries(n));
    keys = std::max(keys, s.keys(n));
  }
  for (const at::Tensor& table : {o.relative_bias, o.relative_scale}) {
    if (!table.defined()) continue;
    if (table.dim() != 2 || table.size(0) != s.heads || table.size(1) % 2 != 1) {
      throw UsageError("attend: a table by distance has shape {}, expected [Hq,2P-1] with Hq = {}",
                       sizes_of(table), s.heads);
    }
    if (o.block_start.defined()) {
      throw UsageError("attend: tables by distance do not go with block lists");
    }
    // Query i stands at i + Tk - Tq, so a key lies at most Tk - 1 behind and, not causal, Tq - 1
    // ahead of one.
    int64_t back = keys - 1, ahead = o.causal ? 0 : queries - 1;
    if (!o.head_window.defined() && o.window > 0 && o.sinks == 0) {
      back = std::min(back, o.window - 1), ahead = std::min(ahead, o.window - 1);
    }
    const int64_t reach = (table.size(1) + 1) / 2;
    if (queries > 0 && keys > 0 && std::max(back, ahead) >= reach) {
      throw UsageError(
          "attend: a table by distance [Hq,{}] reaches {} tokens, a query sees a key {} away",
          table.size(1), reach - 1, std::max(back, ahead));
    }
  }
  if (o.relative_bias.defined() && o.relative_scale.defined() &&
      o.relative_bias.size(1) != o.relative_scale.size(1)) {
    throw UsageError("attend: relative_bias and relative_scale differ in length");
  }
}

void check_axes(const AttendOptions& o, const AttendShape& s) {
  if (o.axes.empty()) return;
  if (o.axes.size() > static_cast<size_t>(kernel::kMaxAxes)) {
    throw UsageError("attend: a grid has at most {} axes, got {}", kernel::kMaxAxes, o.axes.size());
  }
  if (o.causal || o.window > 0 || o.head_window.defined() || o.block_start.defined() ||
      o.alibi_slopes.defined() || o.relative_bias.defined() || o.relative_scale.defined() ||
      s.packed) {
    throw UsageError(
        "attend: axes do not go with causal, window, block lists, slopes, tables by distance or "
        "packs");
  }
  int64_t cells = 1;
  for (size_t i = 0; i < o.axes.size(); ++i) {
    const kernel::Axis& axis = o.axes[i];
    if (axis.stride < 1 || axis.window < axis.stride || axis.length < axis.window) {
      throw UsageError(
          "attend: axis {} has length {}, window {}, stride {}; expected 1 <= stride "
          "<= window <= length",
          i, axis.length, axis.window, axis.stride);
    }
    cells *= axis.length;
  }
  if (s.tq > s.tk || s.tk > cells) {
    throw UsageError("attend: the grid has {} cells, q {} tokens and k {}", cells, s.tq, s.tk);
  }
}

void check_lists(const AttendOptions& options, const AttendShape& s) {
  if (options.q_block < 1 || options.k_block < 1 || !options.block_index.defined()) {
    throw UsageError("attend: block_start needs block_index, q_block and k_block");
  }
  int64_t longest = 0;
  for (int64_t n = 0; n < s.sequences; ++n) longest = std::max(longest, s.queries(n));
  const int64_t blocks = (longest + options.q_block - 1) / options.q_block;
  const bool of_queries = options.block_start.dim() == 3 && options.block_start.size(1) == s.heads;
  const int64_t heads = of_queries ? s.heads : s.kv_heads;
  expect_sizes(options.block_start, "block_start", {s.sequences, heads, blocks + 1},
               "[N,Hk or Hq,blocks+1]");
  if (options.block_start.scalar_type() != at::kLong ||
      options.block_index.scalar_type() != at::kInt || options.block_index.dim() != 1) {
    throw UsageError("attend: block_start must be int64 and block_index int32 [M]");
  }
  const at::Tensor start = options.block_start.cpu().contiguous();
  const at::Tensor index = options.block_index.cpu().contiguous();
  const int64_t* first = start.const_data_ptr<int64_t>();
  const int32_t* list = index.const_data_ptr<int32_t>();
  for (int64_t row = 0; row < s.sequences * heads; ++row, first += blocks + 1) {
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
  if (options.q_bias.defined()) {
    expect_sizes(options.q_bias, "q_bias", {s.batch, s.tq, s.heads}, "[B,Tq,Hq]");
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
  check_tables(options, s);
  check_axes(options, s);
  if (options.block_start.defined()) check_lists(options, s);
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
at::Tensor block_visible(const AttendOptions& options, int64_t sequence, int64_t head, int64_t tq,
                         int64_t tk) {
  const at::Tensor start =
      options.block_start.cpu().select(0, sequence).select(0, head).contiguous();
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

// What query rows see: bool [1 or B, Hk, 1 or G, Tq, Tk], Hk 1 where all heads have one rule.
at::Tensor visible_pairs(const AttendOptions& o, const AttendShape& s, int64_t sequence,
                         int64_t batch, int64_t tq, int64_t tk, const at::Device& device) {
  const bool lists = o.block_start.defined();
  const auto rule = [&](int64_t h) {
    if (!o.axes.empty()) return grid_visible(o.axes, tq, tk, device);
    return attend_visible(tq, tk, o.causal, s.head_window[h], s.head_sinks[h], device);
  };
  if (s.same_window() && !lists) return rule(0).view({1, 1, 1, tq, tk});
  const int64_t width = lists && o.block_start.size(1) != s.kv_heads ? s.group : 1;
  std::vector<at::Tensor> of_sequence;
  for (int64_t n = 0; n < (lists ? batch : 1); ++n) {
    std::vector<at::Tensor> of_head;
    for (int64_t h = 0; h < s.kv_heads * width; ++h) {
      at::Tensor m = rule(h / width);
      if (lists) {
        const at::Tensor listed = block_visible(o, sequence + n, h, tq, tk).to(device);
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

// One sequence (or a batch of equal lengths): q [B,Tq,Hq,D] -> out [B,Tq,Hq,Dv], lse [B,Tq,Hq], in
// the dtype of computation.
std::pair<at::Tensor, at::Tensor> naive_sequence(const at::Tensor& q, const at::Tensor& k,
                                                 const at::Tensor& v, const NaiveTensors& tensors,
                                                 const AttendOptions& o, const AttendShape& s,
                                                 int64_t first_sequence) {
  const int64_t b = q.size(0), tq = q.size(1), tk = k.size(1), hk = s.kv_heads, g = s.group;
  const double inf = std::numeric_limits<double>::infinity();
  const bool softmax = kernel::normalised(o.weight);
  if (tq == 0 || tk == 0) {
    return {at::zeros({b, tq, s.heads, s.value_dim}, q.options()),
            at::full({b, tq, s.heads}, softmax ? -inf : 0.0, q.options())};
  }
  const at::Tensor qh = q.reshape({b, tq, hk, g, s.dim}).permute({0, 2, 3, 1, 4});  // [B,Hk,G,Tq,D]
  const at::Tensor kh = k.permute({0, 2, 3, 1}).unsqueeze(2);                       // [B,Hk,1,D,Tk]
  const at::Tensor vh = v.permute({0, 2, 1, 3}).unsqueeze(2);  // [B,Hk,1,Tk,Dv]
  const auto longs = at::TensorOptions().dtype(at::kLong).device(q.device());
  const at::Tensor j = at::arange(tk, longs);
  const at::Tensor visible = visible_pairs(o, s, first_sequence, b, tq, tk, q.device());
  at::Tensor bias, bias_hidden, q_bias;  // [B,Hk,G,1,Tk], [B,Hk,G,Tq,1]
  if (tensors.key_bias.defined()) {
    bias = tensors.key_bias.reshape({b, tk, hk, g}).permute({0, 2, 3, 1}).unsqueeze(3);
    bias_hidden = bias.detach().eq(-inf);
    bias = bias.masked_fill(bias_hidden, 0.0);
  }
  if (tensors.q_bias.defined()) {
    q_bias = tensors.q_bias.reshape({b, tq, hk, g}).permute({0, 2, 3, 1}).unsqueeze(4);
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
      weight = at::sigmoid(x.add(sigmoid_bias)).masked_fill(hidden, 0.0);
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

std::tuple<at::Tensor, at::Tensor> attend_naive(const at::Tensor& q, const at::Tensor& k,
                                                const at::Tensor& v, const AttendOptions& options) {
  const AttendShape s = check_attend(q, k, v, options);
  const at::ScalarType compute = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor qc = q.to(compute), kc = k.to(compute), vc = v.to(compute);
  const auto wide = [&](const at::Tensor& t) { return t.defined() ? t.to(compute) : t; };
  const NaiveTensors all{wide(options.key_bias), wide(options.q_bias), wide(options.alibi_slopes),
                         wide(options.relative_bias), wide(options.relative_scale)};
  if (!s.packed) {
    const auto [out, lse] = naive_sequence(qc, kc, vc, all, options, s, 0);
    return {out.to(q.scalar_type()), lse};
  }
  std::vector<at::Tensor> outs = {at::zeros({1, 0, s.heads, s.value_dim}, qc.options())};
  std::vector<at::Tensor> lses = {at::zeros({1, 0, s.heads}, qc.options())};
  for (int64_t n = 0; n < s.sequences; ++n) {
    const auto part = [n](const at::Tensor& t, const std::vector<int64_t>& offset) {
      return t.defined() ? t.slice(1, offset[n], offset[n + 1]) : t;
    };
    NaiveTensors own = all;
    own.key_bias = part(all.key_bias, s.k_offset);
    own.q_bias = part(all.q_bias, s.q_offset);
    const auto [out, lse] = naive_sequence(part(qc, s.q_offset), part(kc, s.k_offset),
                                           part(vc, s.k_offset), own, options, s, n);
    outs.push_back(out);
    lses.push_back(lse);
  }
  return {at::cat(outs, 1).to(q.scalar_type()), at::cat(lses, 1)};
}

}  // namespace heed::op
