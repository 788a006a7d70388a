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

Segment make_segment(const AttendCall& c, const Place& p) {
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

AttendJob make_job(const AttendCall& c, const Place& p) {
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
  job.causal = c.causal;
  job.window = c.head_window ? c.head_window[p.kh] : c.window;
  job.sinks = c.head_sinks ? c.head_sinks[p.kh] : c.sinks;
  job.axes = c.axes;
  job.rank = c.rank;
  job.q_bias = at<const float>(c.q_bias, p.b, p.q0, p.qh);
  job.q_bias_stride = c.q_bias.strides[1];
  job.q_bias_head_stride = c.q_bias.strides[2];
  if (c.slopes) job.slopes = c.slopes + p.qh;
  job.reach = c.reach;
  job.relative_stride = 2 * c.reach - 1;
  if (c.relative_bias) job.relative_bias = c.relative_bias + p.qh * job.relative_stride;
  if (c.relative_scale) job.relative_scale = c.relative_scale + p.qh * job.relative_stride;
  job.sigmoid_bias = c.sigmoid_bias;
  if (c.default_sigmoid_bias) {
    job.sigmoid_bias =
        p.keys > 0 ? static_cast<float>(-std::log(static_cast<double>(p.keys))) : 0.0f;
  }
  if (c.block_start) {
    const int64_t head = c.block_heads == c.k.sizes[2] ? p.kh : p.qh;
    job.block_start = c.block_start + (p.n * c.block_heads + head) * (c.blocks + 1);
    job.block_index = c.block_index;
    job.any = c.any;
  }
  return job;
}

AttendGradJob make_gradient(const AttendCall& c, const Place& p) {
  AttendGradJob grad;
  grad.grad_out = at<const void>(c.grad_out, p.b, p.q0, p.qh);
  grad.grad_lse = at<const float>(c.grad_lse, p.b, p.q0, p.qh);
  grad.grad_q = at<float>(c.grad_q, p.b, p.q0, p.qh);
  grad.grad_q_stride = c.grad_q.strides[1];
  grad.grad_q_head_stride = c.grad_q.strides[2];
  grad.grad_k = at<float>(c.grad_k, p.b, p.k0, p.grad_kh);
  grad.grad_k_stride = c.grad_k.strides[1];
  grad.grad_v = at<float>(c.grad_v, p.b, p.k0, p.grad_kh);
  grad.grad_v_stride = c.grad_v.strides[1];
  grad.grad_bias = at<float>(c.grad_key_bias, p.b, p.k0, p.qh);
  grad.grad_bias_stride = c.grad_key_bias.strides[1];
  grad.grad_bias_head_stride = c.grad_key_bias.strides[2];
  grad.grad_q_bias = at<float>(c.grad_q_bias, p.b, p.q0, p.qh);
  if (c.grad_slopes) grad.grad_slopes = c.grad_slopes + p.n * c.grad_slopes_stride + p.qh;
  const int64_t row = p.qh * (2 * c.reach - 1);
  if (c.grad_relative_bias) grad.grad_relative_bias = c.grad_relative_bias + row;
  if (c.grad_relative_scale) grad.grad_relative_scale = c.grad_relative_scale + row;
  return grad;
}

}  // namespace

void build_table(const AttendCall& c, AttendJobs& jobs) {
  const int64_t heads = c.q.sizes[2], kv_heads = c.k.sizes[2], group = heads / kv_heads;
  const bool apart = c.block_start && c.block_heads != kv_heads;
  const int64_t job_heads = apart ? heads : kv_heads;
  const int64_t sequences = c.q_offsets ? c.sequences : c.q.sizes[0];
  const int64_t count = sequences * job_heads;
  jobs.segments.resize(count);
  jobs.jobs.resize(count);
  jobs.grads.resize(c.grad_out.data ? count : 0);
  for (int64_t n = 0; n < sequences; ++n) {
    Place p{n, n, 0, 0, c.q.sizes[1], c.k.sizes[1], 0, 0, 0};
    if (c.kv_lengths) p.keys = c.kv_lengths[n];
    if (c.q_offsets) {
      p.b = 0;
      p.q0 = c.q_offsets[n], p.queries = c.q_offsets[n + 1] - p.q0;
      p.k0 = c.k_offsets[n], p.keys = c.k_offsets[n + 1] - p.k0;
    }
    for (int64_t h = 0; h < job_heads; ++h) {
      p.qh = apart ? h : h * group;
      p.kh = apart ? h / group : h;
      p.grad_kh = h;
      const int64_t i = n * job_heads + h;
      jobs.segments[i] = make_segment(c, p);
      jobs.jobs[i] = make_job(c, p);
      jobs.jobs[i].segments = &jobs.segments[i];
      if (!jobs.grads.empty()) jobs.grads[i] = make_gradient(c, p);
    }
  }
  AttendTable& table = jobs.table;
  table = {};
  table.jobs = jobs.jobs.data();
  table.job_count = count;
  table.group = static_cast<int32_t>(apart ? 1 : group);
  table.head_dim = static_cast<int32_t>(c.q.sizes[3]);
  table.value_dim = static_cast<int32_t>(c.v.sizes[3]);
  table.q_dtype = c.q.dtype;
  table.kv_dtype = c.k.dtype;
  table.weight = c.weight;
  table.scale = c.scale;
  table.soft_cap = c.soft_cap;
  table.q_block = c.q_block;
  table.k_block = c.k_block;
}

}  // namespace heed::kernel
