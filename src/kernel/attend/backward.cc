// Plans and runs a backward call. Rows are cut into units as in forward. A share is some
// consecutive units of one job and has sums of its own for the gradients of the job's keys; where a
// job has more than one share, who finishes last adds the shares up in their order. So results do
// not depend on timing, and no two workers write the same place.
#include <atomic>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "kernel/attend/backward.h"
#include "kernel/attend/keyset.h"
#include "kernel/attend/units.h"
#include "kernel/attend/validate.h"
#include "kernel/parallel.h"

namespace heed::kernel {
namespace attend {
namespace {

using Floats = hwy::AlignedFreeUniquePtr<float[]>;

Floats allocate(int64_t n) {
  Floats floats = hwy::AllocateAligned<float>(static_cast<size_t>(std::max<int64_t>(n, 1)));
  if (!floats) throw std::bad_alloc();
  return floats;
}

struct Share {
  int64_t job = 0;
  size_t unit_begin = 0, unit_end = 0;
  int32_t index = 0;  // of the job's shares
};

struct JobState {
  int64_t keys = 0;
  std::vector<int64_t> first_row;  // of each segment in the sums
  int32_t shares = 0;
  std::vector<Floats> sums;  // a share, where there is more than one
  std::atomic<int32_t> unfinished{0};
  std::vector<float> slopes;       // [G], the sum over the shares
  std::vector<float> bias, scale;  // [G][2P - 1], the tables by distance
};

int64_t sum_floats(const AttendTable& table, const AttendJob& job, int64_t keys) {
  return keys * (pad16(table.head_dim) + pad16(table.value_dim)) + pad16(table.group * keys) +
         pad16(table.group) + 2 * pad16(table.group * table_row(job));
}

BackwardSums sums_at(const AttendTable& table, const AttendJob& job, int64_t keys, float* memory) {
  BackwardSums sums;
  sums.k = memory;
  sums.v = sums.k + keys * pad16(table.head_dim);
  sums.bias = sums.v + keys * pad16(table.value_dim);
  sums.slope = sums.bias + pad16(table.group * keys);
  sums.relative_bias = sums.slope + pad16(table.group);
  sums.relative_scale = sums.relative_bias + pad16(table.group * table_row(job));
  return sums;
}

void add_rows(const float* from, int64_t pad, int64_t rows, int32_t dim, float* to,
              int64_t stride) {
  if (!to) return;
  for (int64_t n = 0; n < rows; ++n) {
    for (int32_t d = 0; d < dim; ++d) to[n * stride + d] += from[n * pad + d];
  }
}

void add_to_gradients(const AttendTable& table, const AttendJob& of_job, const AttendGradJob& grad,
                      JobState& state, const BackwardSums& sums) {
  add_rows(sums.k, pad16(table.head_dim), state.keys, table.head_dim, grad.grad_k,
           grad.grad_k_stride);
  add_rows(sums.v, pad16(table.value_dim), state.keys, table.value_dim, grad.grad_v,
           grad.grad_v_stride);
  for (int32_t g = 0; g < table.group; ++g) {
    state.slopes[g] += sums.slope[g];
    if (!grad.grad_bias) continue;
    for (int64_t n = 0; n < state.keys; ++n) {
      grad.grad_bias[n * grad.grad_bias_stride + g * grad.grad_bias_head_stride] +=
          sums.bias[g * state.keys + n];
    }
  }
  for (int32_t s = 0; grad.grad_log_weight && s < of_job.segment_count; ++s) {
    double sum = 0;
    for (int32_t g = 0; g < table.group; ++g) {
      const float* of_keys = sums.bias + g * state.keys + state.first_row[s];
      for (int64_t n = 0; n < of_job.segments[s].length; ++n) {
        sum += static_cast<double>(of_keys[n]);
      }
    }
    grad.grad_log_weight[s] += static_cast<float>(sum);
  }
  for (size_t i = 0; i < state.bias.size(); ++i) state.bias[i] += sums.relative_bias[i];
  for (size_t i = 0; i < state.scale.size(); ++i) state.scale[i] += sums.relative_scale[i];
}

// Adds the sums of a job to tables that jobs share.
void add_shared(const AttendTable& table, const AttendJob& job, const AttendGradJob& grad,
                const JobState& state) {
  const int64_t row = table_row(job);
  for (int32_t g = 0; g < table.group; ++g) {
    if (grad.grad_slopes) grad.grad_slopes[g] += state.slopes[g];
    for (int64_t i = 0; i < row; ++i) {
      const int64_t at = g * job.relative_stride + i;
      if (grad.grad_relative_bias) grad.grad_relative_bias[at] += state.bias[g * row + i];
      if (grad.grad_relative_scale) grad.grad_relative_scale[at] += state.scale[g * row + i];
    }
  }
}

double cost(const AttendTable& table, const ForwardUnit& unit) {
  return static_cast<double>((unit.keys + 16) * ((unit.n1 - unit.n0) * table.group + 8));
}

// Cuts the units of each job into shares: one where there are jobs enough for all threads.
std::vector<Share> plan_shares(const AttendTable& table, const std::vector<ForwardUnit>& units,
                               int32_t threads, std::vector<JobState>& jobs) {
  double total = 0;
  for (const ForwardUnit& unit : units) total += cost(table, unit);
  const double target =
      threads == 1 || table.job_count >= 8 * threads ? INFINITY : total / (4.0 * threads);
  std::vector<Share> shares;
  for (size_t begin = 0; begin < units.size();) {
    const int64_t job = units[begin].job;
    double sum = 0;
    size_t end = begin;
    while (end < units.size() && units[end].job == job && (end == begin || sum < target)) {
      sum += cost(table, units[end++]);
    }
    shares.push_back({job, begin, end, jobs[job].shares++});
    begin = end;
  }
  return shares;
}

void run(const AttendTable& table, const AttendGradJob* grads, const heed_parallel* parallel) {
  const int32_t threads = parallel_threads(parallel);
  std::vector<ForwardUnit> units;
  const int64_t rows = plan_units(table, rows_a_unit(table, kMaxBackwardRows), units);
  std::vector<JobState> jobs(table.job_count);
  int64_t most_sums = 0;
  for (int64_t i = 0; i < table.job_count; ++i) {
    for (int32_t s = 0; s < table.jobs[i].segment_count; ++s) {
      jobs[i].first_row.push_back(jobs[i].keys);
      jobs[i].keys += table.jobs[i].segments[s].length;
    }
    jobs[i].slopes.assign(table.group, 0.0f);
    const int64_t entries = table.group * table_row(table.jobs[i]);
    jobs[i].bias.assign(grads[i].grad_relative_bias ? entries : 0, 0.0f);
    jobs[i].scale.assign(grads[i].grad_relative_scale ? entries : 0, 0.0f);
  }
  const std::vector<Share> shares = plan_shares(table, units, threads, jobs);
  for (int64_t i = 0; i < table.job_count; ++i) {
    JobState& job = jobs[i];
    job.unfinished.store(job.shares);
    const int64_t floats = sum_floats(table, table.jobs[i], job.keys);
    for (int32_t s = 0; job.shares > 1 && s < job.shares; ++s) {
      job.sums.push_back(allocate(floats));
    }
    if (job.shares == 1) most_sums = std::max(most_sums, floats);
  }
  const int64_t scratch_floats = backward_scratch(table, rows, nullptr, nullptr);
  const int64_t floats = pad16(most_sums + scratch_floats) + kWorkerGap / sizeof(float);
  const Floats memory = allocate(floats * threads);
  parallel_for(parallel, static_cast<int64_t>(shares.size()), [&](int64_t i, int32_t worker) {
    const Share& share = shares[i];
    JobState& job = jobs[share.job];
    const AttendJob& of_job = table.jobs[share.job];
    const AttendGradJob& grad = grads[share.job];
    BackwardScratch scratch;
    backward_scratch(table, rows, memory.get() + worker * floats, &scratch);
    float* own = job.shares > 1 ? job.sums[share.index].get()
                                : memory.get() + worker * floats + scratch_floats;
    std::fill(own, own + sum_floats(table, of_job, job.keys), 0.0f);
    const BackwardSums sums = sums_at(table, of_job, job.keys, own);
    for (size_t u = share.unit_begin; u < share.unit_end; ++u) {
      backward_unit(table, grad, units[u], job.first_row.data(), job.keys, sums, scratch);
    }
    if (job.unfinished.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    for (int32_t s = 0; s < job.shares; ++s) {
      float* at = job.shares > 1 ? job.sums[s].get() : own;
      add_to_gradients(table, of_job, grad, job, sums_at(table, of_job, job.keys, at));
    }
  });
  for (int64_t i = 0; i < table.job_count; ++i) add_shared(table, table.jobs[i], grads[i], jobs[i]);
}

}  // namespace
}  // namespace attend

heed_status attend_backward(const AttendTable& table, const AttendGradJob* grads,
                            const heed_parallel* parallel) {
  heed_status status = attend::validate(table);
  if (status == HEED_OK && table.packed) status = HEED_INVALID_ARGUMENT;
  if (status != HEED_OK) return status;
  if (table.job_count > 0 && !grads) return HEED_INVALID_ARGUMENT;
  for (int64_t i = 0; i < table.job_count; ++i) {
    const AttendJob& job = table.jobs[i];
    if (job.queries > 0 && (!grads[i].grad_out || (normalised(table.weight) && !job.lse))) {
      return HEED_INVALID_ARGUMENT;
    }
    if ((grads[i].grad_q_bias && !job.q_bias) ||
        (grads[i].grad_relative_bias && !job.relative_bias) ||
        (grads[i].grad_relative_scale && !job.relative_scale)) {
      return HEED_INVALID_ARGUMENT;
    }
  }
  if (!attend::has_vectors()) return attend_backward_reference(table, grads);
  try {
    attend::run(table, grads, parallel);
  } catch (const std::bad_alloc&) {
    return HEED_OUT_OF_MEMORY;
  }
  return HEED_OK;
}

}  // namespace heed::kernel
