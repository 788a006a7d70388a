// attend in double precision with plain loops over queries and keys, written from the equations of
// attend.h; the code to read first. The backward pass is the derivative of the same equations:
//
//   softmax: p = exp(x - lse),      dx = p (dout.v - dout.out + dlse)
//   sigmoid: p = sigmoid(x + b),    dx = p (1 - p) dout.v
//   urpe:    p = exp(x - lse),      dx = p (C dout.v - dout.out + dlse),   dC += p dout.v
//   dv += p dout (urpe: C p dout),  dbias, dq_bias, dlog_weight, drelative_bias += dx,
//  dslope -= |p_i - p_j| dx,  ds = (1 - tanh^2) dx with a cap, else
//   dx, dq += scale ds k,  dk += scale ds q
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "kernel/attend/attend.h"
#include "kernel/quant/quant.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel {
namespace {

struct Row {
  const AttendTable& table;
  const AttendJob& job;
  int64_t n;  // query
  int32_t g;  // head of the group
};

double query(const Row& r, int d) {
  return load_element(r.job.q, r.table.q_dtype,
                      r.n * r.job.q_stride + r.g * r.job.q_head_stride + d);
}

// Element d of a row of keys or values.
double element(const void* data, int64_t stride, int bits, const uint16_t* scale,
               const float* centre, const AttendTable& table, int64_t j, int d, int dim) {
  if (bits == 0) return load_element(data, table.kv_dtype, j * stride + d);
  const auto* row = static_cast<const uint8_t*>(data) + j * stride;
  return static_cast<double>(bfloat16_to_float(scale[j])) * quant_level(bits, row, dim, d) +
         (centre ? centre[d] : 0.0f);
}

double key(const Row& r, const Segment& s, int64_t j, int d) {
  return element(s.k, s.k_stride, s.k_bits, s.k_scale, s.k_centre, r.table, j, d, r.table.head_dim);
}

double value(const Row& r, const Segment& s, int64_t j, int d) {
  return element(s.v, s.v_stride, s.v_bits, s.v_scale, s.v_centre, r.table, j, d,
                 r.table.value_dim);
}

// Whether query n may see the key at `position` (biases apart): the rule of attend.h, word by word.
bool visible(const AttendTable& table, const AttendJob& job, int64_t n, int64_t position) {
  const int64_t at = job.q_position + n;
  if (job.axes) {
    int64_t query_rest = at, key_rest = position;
    for (int32_t i = job.rank - 1; i >= 0; --i) {
      const auto [length, window, stride, causal] = job.axes[i];
      const int64_t u = query_rest % length, j = key_rest % length;
      query_rest /= length, key_rest /= length;
      int64_t leader = u / stride * stride + (causal ? stride - 1 : stride / 2);
      leader = std::min(leader, length - 1);
      int64_t begin = std::max<int64_t>(leader - window + 1, 0), end = u + 1;
      if (!causal) {
        begin = std::min(std::max<int64_t>(leader - window / 2, 0), length - window);
        end = begin + window;
      }
      if (j < begin || j >= end) return false;
    }
    return true;
  }
  if (job.causal && position > at) return false;
  const bool near = job.window == 0 || position < job.sinks ||
                    (position > at - job.window && (job.causal || position < at + job.window));
  if (!job.block_start) return near;
  const int64_t block = n / table.q_block;
  const int32_t* begin = job.block_index + job.block_start[block];
  const int32_t* end = job.block_index + job.block_start[block + 1];
  const bool listed =
      position >= 0 && std::find(begin, end, static_cast<int32_t>(position / table.k_block)) != end;
  return job.any ? near || listed : near && listed;
}

// A logit and, for the backward pass, its derivative by scale q.k.
struct Logit {
  double x, slope;
};

// The entry of a table by distance.
int64_t distance_entry(const Row& r, const Segment& segment, int64_t j) {
  const int64_t distance = segment.position + j - (r.job.q_position + r.n);
  return r.g * r.job.relative_stride + r.job.reach - 1 + distance;
}

Logit logit(const Row& r, const Segment& segment, int64_t j) {
  double s = 0;
  for (int d = 0; d < r.table.head_dim; ++d) {
    s += query(r, d) * key(r, segment, j, d);
  }
  Logit result{s * r.table.scale, 1};
  if (r.table.soft_cap > 0) {
    const double t = std::tanh(result.x / r.table.soft_cap);
    result = {r.table.soft_cap * t, 1 - t * t};
  }
  if (r.job.slopes) {
    const int64_t distance = std::llabs(r.job.q_position + r.n - (segment.position + j));
    result.x -= r.job.slopes[r.g] * static_cast<double>(distance);
  }
  if (r.job.relative_bias) result.x += r.job.relative_bias[distance_entry(r, segment, j)];
  if (r.job.q_bias) {
    result.x += r.job.q_bias[r.n * r.job.q_bias_stride + r.g * r.job.q_bias_head_stride];
  }
  result.x += segment.log_weight;
  if (segment.bias) {
    result.x += segment.bias[j * segment.bias_stride + r.g * segment.bias_head_stride];
  }
  return result;
}

bool hidden(const Row& r, const Segment& segment, int64_t j) {
  if (!visible(r.table, r.job, r.n, segment.position + j)) return true;
  return segment.bias && segment.bias[j * segment.bias_stride + r.g * segment.bias_head_stride] ==
                             -std::numeric_limits<float>::infinity();
}

// Calls f(segment, key of the segment, row of all segments laid one after another, logit).
template <class F>
void for_each_visible(const Row& r, F&& f) {
  int64_t before = 0;
  for (int32_t s = 0; s < r.job.segment_count; ++s) {
    const Segment& segment = r.job.segments[s];
    for (int64_t j = 0; j < segment.length; ++j) {
      if (!hidden(r, segment, j)) f(segment, j, before + j, logit(r, segment, j));
    }
    before += segment.length;
  }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The weight of a key and its derivative by the logit, of lse where the weight is normalised; C, by
// which the weight differs from softmax, apart.
struct KeyWeight {
  double p, slope, c;
};

KeyWeight weight_of(const Row& r, const Segment& segment, int64_t j, double x, double lse) {
  switch (r.table.weight) {
    case Weight::kSigmoid: {
      const double p = sigmoid(x + r.job.sigmoid_bias);
      return {p, p * (1 - p), 1};
    }
    case Weight::kGeneric: {
      double slope = 0;
      const double p = r.table.generic->one(x + r.job.sigmoid_bias, r.table.power, &slope);
      return {p, slope, 1};
    }
    case Weight::kUrpe: {
      const double p = std::exp(x - lse);
      return {p, p, r.job.relative_scale[distance_entry(r, segment, j)]};
    }
    case Weight::kSoftmax:
      break;
  }
  const double p = std::exp(x - lse);
  return {p, p, 1};
}

// out and lse of one row.
double forward_row(const Row& r, std::vector<double>& out) {
  const double infinity = std::numeric_limits<double>::infinity();
  double max = -infinity, sum = 0, lse = 0;
  if (normalised(r.table.weight)) {
    for_each_visible(
        r, [&](const Segment&, int64_t, int64_t, Logit l) { max = l.x > max ? l.x : max; });
    for_each_visible(
        r, [&](const Segment&, int64_t, int64_t, Logit l) { sum += std::exp(l.x - max); });
    lse = sum > 0 ? max + std::log(sum) : -infinity;
  }
  out.assign(r.table.value_dim, 0.0);
  for_each_visible(r, [&](const Segment& segment, int64_t j, int64_t, Logit l) {
    const KeyWeight w = weight_of(r, segment, j, l.x, lse);
    for (int d = 0; d < r.table.value_dim; ++d) out[d] += w.c * w.p * value(r, segment, j, d);
  });
  return lse;
}

template <class F>
void for_each_row(const AttendTable& table, F&& f) {
  for (int64_t i = 0; i < table.job_count; ++i) {
    for (int64_t n = 0; n < table.jobs[i].queries; ++n) {
      for (int32_t g = 0; g < table.group; ++g) f(i, Row{table, table.jobs[i], n, g});
    }
  }
}

}  // namespace

heed_status attend_reference(const AttendTable& table) {
  std::vector<double> out;
  for_each_row(table, [&](int64_t, const Row& r) {
    const double lse = forward_row(r, out);
    for (int d = 0; d < table.value_dim; ++d) {
      store_element(r.job.out, table.q_dtype,
                    r.n * r.job.out_stride + r.g * r.job.out_head_stride + d, out[d]);
    }
    if (r.job.lse) {
      r.job.lse[r.n * r.job.lse_stride + r.g * r.job.lse_head_stride] = static_cast<float>(lse);
    }
  });
  return HEED_OK;
}

namespace {

void add(float* at, double x) {
  if (at) *at += static_cast<float>(x);
}

// What one visible key adds to the gradients; `dx` belongs to its logit.
void add_key(const Row& r, const AttendGradJob& grad, const Segment& segment, int64_t j,
             int64_t row, const Logit& l, double dx) {
  if (grad.grad_bias) {
    add(&grad.grad_bias[row * grad.grad_bias_stride + r.g * grad.grad_bias_head_stride], dx);
  }
  if (grad.grad_q_bias) {
    add(&grad.grad_q_bias[r.n * grad.grad_q_bias_stride + r.g * grad.grad_q_bias_head_stride], dx);
  }
  if (grad.grad_log_weight) add(&grad.grad_log_weight[&segment - r.job.segments], dx);
  if (grad.grad_relative_bias) add(&grad.grad_relative_bias[distance_entry(r, segment, j)], dx);
  if (grad.grad_slopes) {
    const int64_t distance = std::llabs(r.job.q_position + r.n - (segment.position + j));
    add(&grad.grad_slopes[r.g], -dx * static_cast<double>(distance));
  }
  const double ds = dx * l.slope * r.table.scale;
  for (int d = 0; d < r.table.head_dim; ++d) {
    if (grad.grad_q) {
      add(&grad.grad_q[r.n * grad.grad_q_stride + r.g * grad.grad_q_head_stride + d],
          ds * key(r, segment, j, d));
    }
    if (grad.grad_k) add(&grad.grad_k[row * grad.grad_k_stride + d], ds * query(r, d));
  }
}

}  // namespace

heed_status attend_backward_reference(const AttendTable& table, const AttendGradJob* grads) {
  std::vector<double> out, grad_out(table.value_dim);
  for_each_row(table, [&](int64_t i, const Row& r) {
    const AttendGradJob& grad = grads[i];
    const double lse = forward_row(r, out);
    double delta = 0;
    for (int d = 0; d < table.value_dim; ++d) {
      grad_out[d] = load_element(grad.grad_out, table.q_dtype,
                                 r.n * grad.grad_out_stride + r.g * grad.grad_out_head_stride + d);
      delta += grad_out[d] * out[d];
    }
    if (grad.grad_lse) {
      delta -= grad.grad_lse[r.n * grad.grad_lse_stride + r.g * grad.grad_lse_head_stride];
    }
    if (!normalised(table.weight)) delta = 0;
    for_each_visible(r, [&](const Segment& segment, int64_t j, int64_t row, Logit l) {
      const KeyWeight w = weight_of(r, segment, j, l.x, lse);
      double dp = 0;
      for (int d = 0; d < table.value_dim; ++d) {
        dp += grad_out[d] * value(r, segment, j, d);
        if (grad.grad_v) add(&grad.grad_v[row * grad.grad_v_stride + d], w.c * w.p * grad_out[d]);
      }
      if (grad.grad_relative_scale) {
        add(&grad.grad_relative_scale[distance_entry(r, segment, j)], w.p * dp);
      }
      add_key(r, grad, segment, j, row, l, w.slope * (w.c * dp - delta));
    });
  });
  return HEED_OK;
}

}  // namespace heed::kernel
