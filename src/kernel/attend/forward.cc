// Plans and runs a forward call. Rows (queries times heads of the group) are cut into units, units
// have keys; the work of all units, laid one after another, is cut into equal shares, inside a unit
// if need be: one schedule for prefill, chunks and decoding (stream-K, Lean Attention). Who
// finishes a unit's last part merges its parts in their order, so results do not depend on timing.
#include <atomic>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "kernel/attend/forward.h"
#include "kernel/attend/units.h"
#include "kernel/attend/validate.h"
#include "kernel/parallel.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel {
namespace attend {
namespace {

// Grows only, so that calls of the same size allocate nothing.
struct Buffer {
  hwy::AlignedFreeUniquePtr<float[]> data;
  int64_t size = 0;

  float* reserve(int64_t n) {
    if (n > size) {
      data = hwy::AllocateAligned<float>(static_cast<size_t>(n));
      if (!data) {
        size = 0;
        throw std::bad_alloc();
      }
      size = n;
    }
    return data.get();
  }
};

struct Plan {
  std::vector<ForwardUnit> units;
  std::vector<ForwardItem> items;
  std::vector<int64_t> share_begin;  // items of share s: share_begin[s] .. share_begin[s + 1]
  std::unique_ptr<std::atomic<int32_t>[]> unfinished;
  int64_t unfinished_size = 0;
  int64_t max_rows = 0;
  int64_t part_floats = 0;
  Buffer parts;
  Buffer scratch;
  bool busy = false;  // a call from inside a task of a call uses another plan
};

Plan& kept_plan() {
  thread_local Plan plan;
  return plan;
}

int64_t floats_a_part(const AttendTable& table, const ForwardUnit& unit) {
  return rows_of(table, unit) * (2 + table.value_dim);
}

// Work of a unit's keys, in multiply-adds times a constant: products for every row, and reading or
// packing the keys once.
double cost_of_keys(const AttendTable& table, const ForwardUnit& unit, int64_t keys) {
  const int64_t whole = (rows_of(table, unit) + kGroup - 1) / kGroup * kGroup;
  const double rows = static_cast<double>(whole);
  return static_cast<double>(keys) * (rows + 20) * (table.head_dim + table.value_dim);
}

void plan_items(const AttendTable& table, int32_t threads, Plan& plan) {
  constexpr double kLeastShare = 1.5e6;  // about 5 microseconds
  constexpr int64_t kSharesAThread = 16;
  double total = 0;
  for (const ForwardUnit& unit : plan.units) total += cost_of_keys(table, unit, unit.keys);
  int64_t shares = 1;
  if (threads > 1) {
    shares = static_cast<int64_t>(std::min(total / kLeastShare, 1e6));
    shares = std::clamp<int64_t>(shares, 1, threads * kSharesAThread);
    if (shares > threads) shares = shares / threads * threads;
  }
  plan.items.clear();
  plan.share_begin.assign(1, 0);
  plan.part_floats = 0;
  double done = 0;
  const auto share_end = [&] {
    return total * static_cast<double>(plan.share_begin.size()) / static_cast<double>(shares);
  };
  for (size_t u = 0; u < plan.units.size(); ++u) {
    ForwardUnit& unit = plan.units[u];
    const double a_key = cost_of_keys(table, unit, 1);
    unit.parts = 0;
    int64_t key = 0;
    do {
      int64_t end = unit.keys;
      bool full = false;
      if (static_cast<int64_t>(plan.share_begin.size()) < shares) {
        const double room = (share_end() - done) / a_key;
        if (room < static_cast<double>(unit.keys - key)) {
          full = true;
          const int64_t tiles = std::llround(std::max(room, 0.0) / kTile);
          end = std::min(unit.keys, key + tiles * kTile);
        }
      }
      if (end > key || unit.keys == 0) {
        plan.items.push_back({static_cast<int64_t>(u), key, end, unit.parts++});
        done += a_key * static_cast<double>(end - key);
        key = end;
      }
      if (full) plan.share_begin.push_back(static_cast<int64_t>(plan.items.size()));
    } while (key < unit.keys);
    unit.first_part = plan.part_floats;
    if (unit.parts > 1) plan.part_floats += unit.parts * floats_a_part(table, unit);
  }
  while (static_cast<int64_t>(plan.share_begin.size()) <= shares) {
    plan.share_begin.push_back(static_cast<int64_t>(plan.items.size()));
  }
}

void write_row(const AttendTable& table, const AttendJob& job, int64_t n, int32_t g,
               const SoftmaxPart<float>& part, const float* o) {
  const bool softmax = normalised(table.weight);
  const float factor = softmax ? part.inverse() : 1.0f;
  const int64_t at = n * job.out_stride + g * job.out_head_stride;
  if (table.q_dtype == HEED_FLOAT32) {
    float* out = static_cast<float*>(job.out) + at;
    for (int d = 0; d < table.value_dim; ++d) out[d] = o[d] * factor;
  } else if (table.q_dtype == HEED_BFLOAT16) {
    uint16_t* out = static_cast<uint16_t*>(job.out) + at;
    for (int d = 0; d < table.value_dim; ++d) out[d] = float_to_bfloat16(o[d] * factor);
  } else {
    uint16_t* out = static_cast<uint16_t*>(job.out) + at;
    for (int d = 0; d < table.value_dim; ++d) out[d] = float_to_float16(o[d] * factor);
  }
  if (job.lse) {
    job.lse[n * job.lse_stride + g * job.lse_head_stride] =
        softmax ? static_cast<float>(part.lse()) : 0.0f;
  }
}

// The result of an item whose unit is in one part.
void write_unit(const AttendTable& table, const ForwardUnit& unit, const ForwardScratch& scratch) {
  const int64_t value_pad = pad16(table.value_dim);
  for (int64_t r = 0; r < rows_of(table, unit); ++r) {
    write_row(table, table.jobs[unit.job], unit.n0 + r / table.group,
              static_cast<int32_t>(r % table.group), scratch.parts[r], scratch.o + r * value_pad);
  }
}

void keep_part(const AttendTable& table, const ForwardUnit& unit, const ForwardScratch& scratch,
               float* part) {
  const int64_t rows = rows_of(table, unit), value_pad = pad16(table.value_dim);
  for (int64_t r = 0; r < rows; ++r) {
    part[2 * r] = scratch.parts[r].max;
    part[2 * r + 1] = scratch.parts[r].sum;
    std::copy_n(scratch.o + r * value_pad, table.value_dim, part + 2 * rows + r * table.value_dim);
  }
}

void merge_unit(const AttendTable& table, const ForwardUnit& unit, float* parts) {
  const int64_t rows = rows_of(table, unit), size = floats_a_part(table, unit);
  for (int64_t r = 0; r < rows; ++r) {
    SoftmaxPart<float> whole{parts[2 * r], parts[2 * r + 1]};
    float* o = parts + 2 * rows + r * table.value_dim;
    for (int32_t i = 1; i < unit.parts; ++i) {
      const float* part = parts + i * size;
      const float* other = part + 2 * rows + r * table.value_dim;
      if (!normalised(table.weight)) {
        for (int d = 0; d < table.value_dim; ++d) o[d] += other[d];
      } else {
        merge_into(whole, o, {part[2 * r], part[2 * r + 1]}, other, table.value_dim);
      }
    }
    write_row(table, table.jobs[unit.job], unit.n0 + r / table.group,
              static_cast<int32_t>(r % table.group), whole, o);
  }
}

void run_plan(const AttendTable& table, const heed_parallel* parallel, Plan& plan) {
  const int32_t threads = parallel_threads(parallel);
  plan.max_rows = plan_units(table, rows_a_unit(table, kMaxRows), plan.units);
  if (plan.units.empty()) return;
  plan_items(table, threads, plan);
  const int64_t floats =
      pad16(forward_scratch_floats(table, plan.max_rows)) + kWorkerGap / sizeof(float);
  float* scratch = plan.scratch.reserve(floats * threads);
  float* parts = plan.parts.reserve(std::max<int64_t>(plan.part_floats, 1));
  if (plan.part_floats > 0) {
    const int64_t n = static_cast<int64_t>(plan.units.size());
    if (n > plan.unfinished_size) {
      plan.unfinished = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(n));
      plan.unfinished_size = n;
    }
    for (int64_t u = 0; u < n; ++u) {
      plan.unfinished[u].store(plan.units[u].parts, std::memory_order_relaxed);
    }
  }
  const int64_t shares = static_cast<int64_t>(plan.share_begin.size()) - 1;
  parallel_for(parallel, shares, [&](int64_t share, int32_t worker) {
    const ForwardScratch mine = forward_scratch(table, plan.max_rows, scratch + worker * floats);
    for (int64_t i = plan.share_begin[share]; i < plan.share_begin[share + 1]; ++i) {
      const ForwardItem& item = plan.items[i];
      const ForwardUnit& unit = plan.units[item.unit];
      forward_item(table, unit, item, mine);
      if (unit.parts == 1) {
        write_unit(table, unit, mine);
        continue;
      }
      float* first = parts + unit.first_part;
      keep_part(table, unit, mine, first + item.part * floats_a_part(table, unit));
      if (plan.unfinished[item.unit].fetch_sub(1, std::memory_order_acq_rel) == 1) {
        merge_unit(table, unit, first);
      }
    }
  });
}

}  // namespace
}  // namespace attend

heed_status attend_forward(const AttendTable& table, const heed_parallel* parallel) {
  const heed_status status = attend::validate(table);
  if (status != HEED_OK) return status;
  if (!attend::has_vectors()) return attend_reference(table);
  attend::Plan& kept = attend::kept_plan();
  try {
    if (kept.busy) {
      attend::Plan plan;
      attend::run_plan(table, parallel, plan);
      return HEED_OK;
    }
    kept.busy = true;
    attend::run_plan(table, parallel, kept);
    kept.busy = false;
  } catch (const std::bad_alloc&) {
    kept.busy = false;
    return HEED_OUT_OF_MEMORY;
  }
  return HEED_OK;
}

void attend_release() {
  attend::Plan& kept = attend::kept_plan();
  if (!kept.busy) kept = attend::Plan();
}

}  // namespace heed::kernel
