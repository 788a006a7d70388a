#include "kernel/attend/table.h"

#include <cmath>

#include "kernel/simd_dtype.h"

namespace heed::kernel {
namespace {

// Element [b, t, h] of a view; NULL where it has no data.
template <class T>
T* at(const heed_view& view, int64_t b, int64_t t, int64_t h) {
  if (!view.data) return nullptr;
  const int64_t element = b * view.strides[0] + t * view.strides[1] + h * view.strides[2];
  return reinterpret_cast<T*>(static_cast<char*>(view.data) + element * dtype_size(view.dtype));
}

// The rows and heads of one job.
struct Place {
  int64_t n, b, q0, k0, queries, keys;  // sequence, batch row, first tokens, lengths
  int64_t qh, kh, grad_kh;              // first query head, KV head, and where its gradients lie
};

Segment make_segment(const AttendTensors<heed_view>& c, const Place& p) {
  Segment segment;
  segment.k = at<const void>(c.k, p.b, p.k0, p.kh);
  segment.v = at<const void>(c.v, p.b, p.k0, p.kh);
  segment.k_stride = c.k.strides[1];
  segment.v_stride = c.v.strides[1];
  segment.length = p.keys;
  segment.bias = at<const float>(c.key_bias, p.b, p.k0, p.qh);
  segment.bias_stride = c.key_bias.strides[1];
  segment.bias_head_stride = c.key_bias.strides[2];
  return segment;
}

float sigmoid_bias(const AttendSettings& o, int64_t keys) {
  if (!std::isnan(o.bias)) return static_cast<float>(o.bias);
  if (o.weight != static_cast<int64_t>(Weight::kSigmoid) || keys == 0) return 0;
  return static_cast<float>(-std::log(static_cast<double>(keys)));
}

const float* table_of(const heed_view& view, int64_t head) {
  return view.data ? static_cast<const float*>(view.data) + head * view.sizes[1] : nullptr;
}

AttendJob make_job(const AttendCall& call, const Place& p) {
  const auto& c = call.in;
  const AttendSettings& o = call.options;
  AttendJob job;
  job.q = at<const void>(c.q, p.b, p.q0, p.qh);
  job.q_stride = c.q.strides[1];
  job.q_head_stride = c.q.strides[2];
  job.out = at<void>(c.out, p.b, p.q0, p.qh);
  job.out_stride = c.out.strides[1];
  job.out_head_stride = c.out.strides[2];
  job.lse = at<float>(c.lse, p.b, p.q0, p.qh);
  job.lse_stride = c.lse.strides[1];
  job.lse_head_stride = c.lse.strides[2];
  job.queries = p.queries;
  job.q_position = p.keys - p.queries;
  job.segment_count = 1;
  job.causal = o.causal != 0;
  job.window = given(c.head_window) ? attend_list(c.head_window)[p.kh] : o.window;
  job.sinks = given(c.head_sinks) ? attend_list(c.head_sinks)[p.kh] : o.sinks;
  job.q_bias = at<const float>(c.q_bias, p.b, p.q0, p.qh);
  job.q_bias_stride = c.q_bias.strides[1];
  job.q_bias_head_stride = c.q_bias.strides[2];
  if (c.alibi_slopes.data) job.slopes = static_cast<const float*>(c.alibi_slopes.data) + p.qh;
  const heed_view& by_distance = given(c.relative_bias) ? c.relative_bias : c.relative_scale;
  job.relative_stride = by_distance.sizes[1];
  job.reach = (by_distance.sizes[1] + 1) / 2;
  job.relative_bias = table_of(c.relative_bias, p.qh);
  job.relative_scale = table_of(c.relative_scale, p.qh);
  job.sigmoid_bias = sigmoid_bias(o, p.keys);
  if (given(c.block_start)) {
    const int64_t heads = c.block_start.sizes[1], blocks = c.block_start.sizes[2] - 1;
    const int64_t head = heads == c.k.sizes[2] ? p.kh : p.qh;
    job.block_start = attend_list(c.block_start) + (p.n * heads + head) * (blocks + 1);
    job.block_index = static_cast<const int32_t*>(c.block_index.data);
    job.any = o.any != 0;
  }
  return job;
}

AttendGradJob make_gradient(const AttendTensors<heed_view>& c, const Place& p) {
  AttendGradJob grad;
  grad.grad_out = at<const void>(c.out, p.b, p.q0, p.qh);
  grad.grad_out_stride = c.out.strides[1];
  grad.grad_out_head_stride = c.out.strides[2];
  grad.grad_lse = at<const float>(c.lse, p.b, p.q0, p.qh);
  grad.grad_lse_stride = c.lse.strides[1];
  grad.grad_lse_head_stride = c.lse.strides[2];
  grad.grad_q = at<float>(c.q, p.b, p.q0, p.qh);
  grad.grad_q_stride = c.q.strides[1];
  grad.grad_q_head_stride = c.q.strides[2];
  grad.grad_k = at<float>(c.k, p.b, p.k0, p.grad_kh);
  grad.grad_k_stride = c.k.strides[1];
  grad.grad_v = at<float>(c.v, p.b, p.k0, p.grad_kh);
  grad.grad_v_stride = c.v.strides[1];
  grad.grad_bias = at<float>(c.key_bias, p.b, p.k0, p.qh);
  grad.grad_bias_stride = c.key_bias.strides[1];
  grad.grad_bias_head_stride = c.key_bias.strides[2];
  grad.grad_q_bias = at<float>(c.q_bias, p.b, p.q0, p.qh);
  grad.grad_q_bias_stride = c.q_bias.strides[1];
  grad.grad_q_bias_head_stride = c.q_bias.strides[2];
  if (c.alibi_slopes.data) grad.grad_slopes = static_cast<float*>(c.alibi_slopes.data) + p.qh;
  grad.grad_relative_bias = const_cast<float*>(table_of(c.relative_bias, p.qh));
  grad.grad_relative_scale = const_cast<float*>(table_of(c.relative_scale, p.qh));
  return grad;
}

}  // namespace

void build_table(const AttendCall& c, bool backward, AttendJobs& jobs) {
  const AttendTensors<heed_view>& x = c.in;
  const AttendSettings& o = c.options;
  const int64_t heads = x.q.sizes[2], kv_heads = x.k.sizes[2], group = heads / kv_heads;
  const bool apart = heads_apart(c);
  const int64_t job_heads = apart ? heads : kv_heads;
  const int64_t sequences = attend_sequences(c);
  const int64_t count = sequences * job_heads;
  jobs.segments.resize(count);
  jobs.jobs.resize(count);
  jobs.grads.resize(backward ? count : 0);
  int32_t rank = 0;
  for (; given(x.axes) && rank < x.axes.sizes[0]; ++rank) {
    const int64_t* axis = attend_list(x.axes) + 4 * rank;
    jobs.axes[rank] = {axis[0], axis[1], axis[2], axis[3] != 0};
  }
  for (int64_t n = 0; n < sequences; ++n) {
    const AttendKeys keys = attend_keys(c, n);
    Place p{n, n, 0, keys.first, x.q.sizes[1], keys.count, 0, 0, 0};
    if (const int64_t* q = c.head.cu_seqlens) {
      p.b = 0;
      p.q0 = q[n], p.queries = q[n + 1] - q[n];
    }
    for (int64_t h = 0; h < job_heads; ++h) {
      p.qh = apart ? h : h * group;
      p.kh = apart ? h / group : h;
      p.grad_kh = h;
      const int64_t i = n * job_heads + h;
      jobs.segments[i] = make_segment(x, p);
      jobs.jobs[i] = make_job(c, p);
      jobs.jobs[i].segments = &jobs.segments[i];
      if (rank > 0) jobs.jobs[i].axes = jobs.axes, jobs.jobs[i].rank = rank;
      if (backward) jobs.grads[i] = make_gradient(c.grad, p);
    }
  }
  AttendTable& table = jobs.table;
  table = {};
  table.jobs = jobs.jobs.data();
  table.job_count = count;
  table.group = static_cast<int32_t>(apart ? 1 : group);
  table.head_dim = static_cast<int32_t>(x.q.sizes[3]);
  table.value_dim = static_cast<int32_t>(x.v.sizes[3]);
  table.q_dtype = x.q.dtype;
  table.kv_dtype = x.k.dtype;
  table.weight = static_cast<Weight>(o.weight);
  if (table.weight == Weight::kGeneric) table.generic = &kGeneric[o.function];
  table.power = o.power;
  const double scale =
      std::isnan(o.scale) ? 1.0 / std::sqrt(static_cast<double>(x.q.sizes[3])) : o.scale;
  table.scale = static_cast<float>(scale);
  table.soft_cap = static_cast<float>(o.soft_cap);
  table.q_block = static_cast<int32_t>(o.q_block);
  table.k_block = static_cast<int32_t>(o.k_block);
}

void RaggedTable::start(const heed_view& q, const heed_view& out, const heed_view& lse,
                        int64_t kv_heads, int32_t kv_dtype) {
  q_ = q, out_ = out, lse_ = lse;
  segments_.clear();
  jobs_.clear();
  first_.assign(1, 0);
  table_ = {};
  table_.group = static_cast<int32_t>(q.sizes[1] / kv_heads);
  table_.head_dim = static_cast<int32_t>(q.sizes[2]);
  table_.value_dim = static_cast<int32_t>(out.sizes[2]);
  table_.q_dtype = q.dtype;
  table_.kv_dtype = kv_dtype;
}

AttendJob& RaggedTable::add(int64_t begin, int64_t queries, int64_t head, int64_t position) {
  const auto row = [&](const heed_view& view) -> void* {
    if (!view.data) return nullptr;
    const int64_t element = begin * view.strides[0] + head * table_.group * view.strides[1];
    return static_cast<char*>(view.data) + element * dtype_size(view.dtype);
  };
  AttendJob& job = jobs_.emplace_back();
  job.q = row(q_);
  job.q_stride = q_.strides[0], job.q_head_stride = q_.strides[1];
  job.out = row(out_);
  job.out_stride = out_.strides[0], job.out_head_stride = out_.strides[1];
  job.lse = static_cast<float*>(row(lse_));
  job.lse_stride = lse_.strides[0], job.lse_head_stride = lse_.strides[1];
  job.queries = queries;
  job.q_position = position;
  job.segment_count = static_cast<int32_t>(segments_.size() - first_.back());
  first_.push_back(segments_.size());
  return job;
}

AttendTable& RaggedTable::finish() {
  for (size_t i = 0; i < jobs_.size(); ++i) jobs_[i].segments = segments_.data() + first_[i];
  for (const Segment& s : segments_) table_.packed |= s.k_bits != 0 || s.v_bits != 0;
  table_.jobs = jobs_.data();
  table_.job_count = static_cast<int64_t>(jobs_.size());
  return table_;
}

}  // namespace heed::kernel
