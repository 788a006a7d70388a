// Random calls of attend for the tests: one description makes the tables of the kernel and of the
// double reference over the same numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "kernel/attend/attend.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel {

struct AttendCase {
  int64_t jobs = 1, queries = 1, keys = 1;
  int32_t group = 1, head_dim = 64, value_dim = 64;
  bool causal = true;
  int64_t window = 0, sinks = 0;
  float soft_cap = 0;
  bool slopes = false, bias = false, hide = false;  // hide: some biases are -inf
  Weight weight = Weight::kSoftmax;
  int64_t function = 0;  // of the weight generic
  double power = 2;      // of its function relu
  int32_t q_dtype = HEED_FLOAT32, kv_dtype = HEED_FLOAT32;
  int64_t page = 0;   // keys a segment; 0: one segment
  bool ring = false;  // the segments in another order than their positions
  int32_t q_block = 0, k_block = 0;
  bool any = false;                         // lists by OR
  std::vector<Axis> axes;                   // of a grid
  bool q_bias = false, log_weight = false;  // log_weight: of every other segment
  bool relative_bias = false;               // urpe has its other table always
  bool grad_lse = false;
  float q_scale = 1;         // large ones make large logits
  bool nan_padding = false;  // NaN between rows and in hidden values
  uint32_t seed = 1;
};

inline std::ostream& operator<<(std::ostream& os, const AttendCase& c) {
  return os << "jobs " << c.jobs << " Tq " << c.queries << " Tk " << c.keys << " G " << c.group
            << " D " << c.head_dim << " Dv " << c.value_dim << " causal " << c.causal << " window "
            << c.window << " sinks " << c.sinks << " cap " << c.soft_cap << " slopes " << c.slopes
            << " bias " << c.bias << " hide " << c.hide << " weight " << static_cast<int>(c.weight)
            << " function " << c.function << " q " << c.q_dtype << " kv " << c.kv_dtype << " page "
            << c.page << " ring " << c.ring << " blocks " << c.q_block << "x" << c.k_block
            << " nan " << c.nan_padding << " any " << c.any << " rank " << c.axes.size()
            << " q_bias " << c.q_bias << " log_weight " << c.log_weight << " relative "
            << c.relative_bias;
}

// Grids of one to three axes: sliding, strided, blocked, causal, windows as large as an axis.
inline std::vector<std::vector<Axis>> attend_grids() {
  return {{{150, 9, 1, false}},
          {{150, 8, 3, true}},
          {{33, 33, 1, false}},
          {{130, 130, 1, true}},
          {{12, 5, 1, false}, {14, 4, 1, false}},
          {{9, 4, 2, true}, {20, 6, 6, false}},
          {{3, 1, 1, false}, {50, 7, 2, true}},
          {{5, 3, 1, false}, {6, 4, 3, true}, {7, 2, 1, false}}};
}

inline int64_t cells(const std::vector<Axis>& axes) {
  int64_t n = 1;
  for (const Axis& axis : axes) n *= axis.length;
  return n;
}

class AttendData {
 public:
  explicit AttendData(const AttendCase& c) : c_(c), random_(c.seed) {
    const int64_t pad = c.nan_padding ? 3 : 0;
    k_row_ = c.head_dim + pad, v_row_ = c.value_dim + pad;
    q_row_ = c.group * (c.head_dim + pad), o_row_ = c.group * (c.value_dim + pad);
    const double scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    q_ = tensor(c.jobs * c.queries * q_row_, c.q_dtype, c.head_dim, pad, c.q_scale);
    k_ = tensor(c.jobs * c.keys * k_row_, c.kv_dtype, c.head_dim, pad, 1);
    v_ = tensor(c.jobs * c.keys * v_row_, c.kv_dtype, c.value_dim, pad, 1);
    grad_out_ = tensor(c.jobs * c.queries * o_row_, c.q_dtype, c.value_dim, pad, 1);
    std::normal_distribution<float> normal;
    bias_.resize(c.jobs * c.keys * c.group);
    for (float& x : bias_) {
      x = c.hide && random_() % 4 == 0 ? -std::numeric_limits<float>::infinity() : normal(random_);
    }
    for (int32_t g = 0; g < c.group; ++g)
      slopes_.push_back(std::exp2(-1.0f - static_cast<float>(g)));
    if (c.q_block > 0) make_blocks();
    reach_ = std::max<int64_t>(std::max(c.queries, c.keys), 1);
    for (std::vector<float>* table : {&relative_bias_, &relative_scale_}) {
      table->resize(c.group * (2 * reach_ - 1));
      for (float& x : *table) x = normal(random_);
    }
    q_bias_.resize(c.jobs * c.queries * c.group);
    grad_lse_.resize(q_bias_.size());
    for (float& x : q_bias_) x = normal(random_);
    for (float& x : grad_lse_) x = normal(random_);
    make_segments();
    if (c.nan_padding && c.bias && c.hide) poison_hidden();
    table_.group = c.group;
    table_.head_dim = c.head_dim;
    table_.value_dim = c.value_dim;
    table_.q_dtype = c.q_dtype;
    table_.kv_dtype = c.kv_dtype;
    table_.weight = c.weight;
    if (c.weight == Weight::kGeneric) table_.generic = &kGeneric[c.function];
    table_.power = c.power;
    table_.scale = static_cast<float>(scale);
    table_.soft_cap = c.soft_cap;
    table_.q_block = c.q_block;
    table_.k_block = c.k_block;
    for (int64_t i = 0; i < c.jobs; ++i) {
      AttendJob job;
      job.q = at(q_, c.q_dtype, i * c.queries * q_row_);
      job.q_stride = q_row_, job.q_head_stride = c.head_dim + pad;
      job.out_stride = o_row_, job.out_head_stride = c.value_dim + pad;
      job.lse_stride = c.group, job.lse_head_stride = 1;
      job.queries = c.queries;
      job.q_position = c.keys - c.queries;
      job.segments = segments_[i].data();
      job.segment_count = static_cast<int32_t>(segments_[i].size());
      job.causal = c.causal;
      job.window = c.window, job.sinks = c.sinks;
      if (c.slopes) job.slopes = slopes_.data();
      job.sigmoid_bias = c.keys > 0 ? -std::log(static_cast<float>(c.keys)) : 0.0f;
      if (c.q_block > 0) {
        job.block_start = block_start_.data();
        job.block_index = block_index_.data();
        job.any = c.any;
      }
      if (!c_.axes.empty()) {
        job.axes = c_.axes.data();
        job.rank = static_cast<int32_t>(c_.axes.size());
      }
      if (c.q_bias) {
        job.q_bias = q_bias_.data() + i * c.queries * c.group;
        job.q_bias_stride = c.group, job.q_bias_head_stride = 1;
      }
      if (c.relative_bias) job.relative_bias = relative_bias_.data();
      if (c.weight == Weight::kUrpe) job.relative_scale = relative_scale_.data();
      job.reach = reach_, job.relative_stride = 2 * reach_ - 1;
      jobs_.push_back(job);
    }
    table_.jobs = jobs_.data();
    table_.job_count = c.jobs;
  }

  struct Result {
    std::vector<double> out;
    std::vector<float> lse;
  };

  // Runs f on the table with outputs of `out_dtype` and returns them.
  Result run(const std::function<heed_status(const AttendTable&)>& f) {
    std::vector<uint8_t> out(c_.jobs * c_.queries * o_row_ * 4, 0xFF);
    Result result;
    result.lse.assign(c_.jobs * c_.queries * c_.group, 12345.0f);
    set_outputs(out.data(), result.lse.data(), c_.q_dtype);
    status = f(table_);
    for (int64_t i = 0; i < c_.jobs * c_.queries * c_.group; ++i) {
      const int64_t row = o_row_ / c_.group;
      for (int d = 0; d < c_.value_dim; ++d) {
        result.out.push_back(load_element(out.data(), c_.q_dtype, i * row + d));
      }
    }
    return result;
  }

  // The reference on the same stored numbers, its output in float32.
  Result reference() {
    std::vector<double> wide;
    for (int64_t i = 0; i < static_cast<int64_t>(q_.size() / dtype_size(c_.q_dtype)); ++i) {
      wide.push_back(load_element(q_.data(), c_.q_dtype, i));
    }
    std::vector<double> out(c_.jobs * c_.queries * o_row_);
    Result result;
    result.lse.assign(c_.jobs * c_.queries * c_.group, 0.0f);
    set_outputs(out.data(), result.lse.data(), HEED_FLOAT64);
    for (int64_t i = 0; i < c_.jobs; ++i) jobs_[i].q = wide.data() + i * c_.queries * q_row_;
    AttendTable table = table_;
    table.q_dtype = HEED_FLOAT64;
    status = attend_reference(table);
    for (int64_t i = 0; i < c_.jobs; ++i) jobs_[i].q = at(q_, c_.q_dtype, i * c_.queries * q_row_);
    for (int64_t i = 0; i < c_.jobs * c_.queries * c_.group; ++i) {
      const int64_t row = o_row_ / c_.group;
      for (int d = 0; d < c_.value_dim; ++d) result.out.push_back(out[i * row + d]);
    }
    return result;
  }

  struct Gradients {
    std::vector<float> q, k, v, bias, slopes, q_bias, log_weight, relative_bias, relative_scale;
  };
  static constexpr std::vector<float> Gradients::*kGradients[] = {&Gradients::q,
                                                                  &Gradients::k,
                                                                  &Gradients::v,
                                                                  &Gradients::bias,
                                                                  &Gradients::slopes,
                                                                  &Gradients::q_bias,
                                                                  &Gradients::log_weight,
                                                                  &Gradients::relative_bias,
                                                                  &Gradients::relative_scale};
  static constexpr const char* kGradientNames[] = {
      "q", "k", "v", "bias", "slopes", "q_bias", "log_weight", "relative_bias", "relative_scale"};

  // Runs `forward` for out and lse, then f.
  Gradients gradients(
      const std::function<heed_status(const AttendTable&)>& forward,
      const std::function<heed_status(const AttendTable&, const AttendGradJob*)>& f) {
    std::vector<uint8_t> out(c_.jobs * c_.queries * o_row_ * 4);
    std::vector<float> lse(c_.jobs * c_.queries * c_.group);
    set_outputs(out.data(), lse.data(), c_.q_dtype);
    status = forward(table_);
    Gradients g;
    g.q.assign(c_.jobs * c_.queries * c_.group * c_.head_dim, 0.0f);
    g.k.assign(c_.jobs * c_.keys * c_.head_dim, 0.0f);
    g.v.assign(c_.jobs * c_.keys * c_.value_dim, 0.0f);
    g.bias.assign(c_.jobs * c_.keys * c_.group, 0.0f);
    g.slopes.assign(c_.group, 0.0f);
    g.q_bias.assign(q_bias_.size(), 0.0f);
    g.relative_bias.assign(relative_bias_.size(), 0.0f);
    g.relative_scale.assign(relative_scale_.size(), 0.0f);
    const int64_t most = segments_.empty() ? 0 : static_cast<int64_t>(segments_[0].size());
    g.log_weight.assign(c_.jobs * most, 0.0f);
    std::vector<AttendGradJob> grads;
    for (int64_t i = 0; i < c_.jobs; ++i) {
      AttendGradJob job;
      job.grad_out = at(grad_out_, c_.q_dtype, i * c_.queries * o_row_);
      job.grad_q = g.q.data() + i * c_.queries * c_.group * c_.head_dim;
      job.grad_q_stride = c_.group * c_.head_dim, job.grad_q_head_stride = c_.head_dim;
      job.grad_k = g.k.data() + i * c_.keys * c_.head_dim, job.grad_k_stride = c_.head_dim;
      job.grad_v = g.v.data() + i * c_.keys * c_.value_dim, job.grad_v_stride = c_.value_dim;
      if (c_.bias) {
        job.grad_bias = g.bias.data() + i * c_.keys * c_.group;
        job.grad_bias_stride = c_.group, job.grad_bias_head_stride = 1;
      }
      if (c_.slopes) job.grad_slopes = g.slopes.data();
      job.grad_out_stride = jobs_[i].out_stride,
      job.grad_out_head_stride = jobs_[i].out_head_stride;
      job.grad_lse_stride = jobs_[i].lse_stride,
      job.grad_lse_head_stride = jobs_[i].lse_head_stride;
      job.grad_q_bias_stride = jobs_[i].q_bias_stride;
      job.grad_q_bias_head_stride = jobs_[i].q_bias_head_stride;
      if (c_.grad_lse) job.grad_lse = grad_lse_.data() + i * c_.queries * c_.group;
      if (c_.q_bias) job.grad_q_bias = g.q_bias.data() + i * c_.queries * c_.group;
      if (c_.log_weight) job.grad_log_weight = g.log_weight.data() + i * most;
      if (c_.relative_bias) job.grad_relative_bias = g.relative_bias.data();
      if (c_.weight == Weight::kUrpe) job.grad_relative_scale = g.relative_scale.data();
      grads.push_back(job);
    }
    if (status == HEED_OK) status = f(table_, grads.data());
    return g;
  }

  const AttendTable& table() const { return table_; }
  std::vector<AttendJob>& jobs() { return jobs_; }
  std::vector<uint8_t>& q() { return q_; }
  std::vector<uint8_t>& k() { return k_; }
  std::vector<uint8_t>& v() { return v_; }
  std::vector<uint8_t>& grad_out() { return grad_out_; }
  std::vector<float>& bias() { return bias_; }
  std::vector<float>& slopes() { return slopes_; }
  std::vector<float>& q_bias() { return q_bias_; }
  std::vector<float>& grad_lse() { return grad_lse_; }
  std::vector<float>& relative_bias() { return relative_bias_; }
  std::vector<float>& relative_scale() { return relative_scale_; }
  heed_status status = HEED_OK;

 private:
  std::vector<uint8_t> tensor(int64_t n, int32_t dtype, int64_t width, int64_t pad, double scale) {
    std::normal_distribution<double> normal;
    std::vector<uint8_t> data(n * dtype_size(dtype) + 1);
    data.resize(n *
                dtype_size(dtype));  // one byte less: address sanitizers see reads behind the end
    data.shrink_to_fit();
    for (int64_t i = 0; i < n; ++i) {
      const bool inside = i % (width + pad) < width;
      store_element(data.data(), dtype, i,
                    inside ? scale * normal(random_) : std::numeric_limits<double>::quiet_NaN());
    }
    return data;
  }

  static uint8_t* at(std::vector<uint8_t>& data, int32_t dtype, int64_t i) {
    return data.data() + i * dtype_size(dtype);
  }

  void set_outputs(void* out, float* lse, int32_t dtype) {
    for (int64_t i = 0; i < c_.jobs; ++i) {
      jobs_[i].out = static_cast<uint8_t*>(out) + i * c_.queries * o_row_ * dtype_size(dtype);
      jobs_[i].lse = lse + i * c_.queries * c_.group;
    }
  }

  void make_blocks() {
    block_start_.push_back(0);
    const int64_t rows = (c_.queries + c_.q_block - 1) / c_.q_block;
    const int64_t columns = (c_.keys + c_.k_block - 1) / c_.k_block;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        if (random_() % 3 != 0) block_index_.push_back(static_cast<int32_t>(j));
      }
      block_start_.push_back(static_cast<int64_t>(block_index_.size()));
    }
    block_index_.push_back(0);  // so that data() is never NULL
  }

  void make_segments() {
    const int64_t page = c_.page > 0 ? c_.page : std::max<int64_t>(c_.keys, 1);
    for (int64_t i = 0; i < c_.jobs; ++i) {
      std::vector<Segment> list;
      for (int64_t first = 0; first < c_.keys || first == 0; first += page) {
        Segment s;
        s.k = at(k_, c_.kv_dtype, (i * c_.keys + first) * k_row_);
        s.v = at(v_, c_.kv_dtype, (i * c_.keys + first) * v_row_);
        s.k_stride = k_row_, s.v_stride = v_row_;
        s.length = std::min(page, c_.keys - first);
        s.position = first;
        if (c_.bias) {
          s.bias = bias_.data() + (i * c_.keys + first) * c_.group;
          s.bias_stride = c_.group, s.bias_head_stride = 1;
        }
        if (c_.log_weight && list.size() % 2 == 0) s.log_weight = 0.75f;
        list.push_back(s);
        if (c_.page > 0 && first == 0) {  // an empty segment changes nothing
          s.length = 0;
          list.push_back(s);
        }
      }
      if (c_.ring && list.size() > 1) std::swap(list.front(), list.back());
      segments_.push_back(list);
    }
  }

  // NaN in every key and value that its bias hides from all heads.
  void poison_hidden() {
    for (int64_t i = 0; i < c_.jobs * c_.keys; ++i) {
      if (std::isfinite(bias_[i * c_.group])) continue;
      for (int32_t g = 0; g < c_.group; ++g) bias_[i * c_.group + g] = bias_[i * c_.group];
      for (int d = 0; d < c_.head_dim; ++d) {
        store_element(k_.data(), c_.kv_dtype, i * k_row_ + d, std::nan(""));
      }
      for (int d = 0; d < c_.value_dim; ++d) {
        store_element(v_.data(), c_.kv_dtype, i * v_row_ + d, std::nan(""));
      }
    }
  }

  AttendCase c_;
  std::mt19937 random_;
  int64_t k_row_, v_row_, q_row_, o_row_;
  std::vector<uint8_t> q_, k_, v_, grad_out_;
  std::vector<float> bias_, slopes_, q_bias_, grad_lse_, relative_bias_, relative_scale_;
  int64_t reach_ = 1;
  std::vector<int64_t> block_start_;
  std::vector<int32_t> block_index_;
  std::vector<std::vector<Segment>> segments_;
  std::vector<AttendJob> jobs_;
  AttendTable table_;
};

// ||a - b|| / ||b||; 0 for two empty or zero vectors, infinity if a is not finite where b is.
template <class A, class B>
double relative_error(const std::vector<A>& a, const std::vector<B>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (x == y) {
      if (std::isfinite(y)) norm += y * y;
      continue;
    }
    if (!std::isfinite(x) || !std::isfinite(y)) return std::numeric_limits<double>::infinity();
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  if (difference == 0) return 0;
  return std::sqrt(difference / norm);
}

}  // namespace heed::kernel
