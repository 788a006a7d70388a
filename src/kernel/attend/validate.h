// What attend takes: sizes, dtypes and rules of a table.
#pragma once

#include "kernel/attend/attend.h"
#include "kernel/attend/keyset.h"
#include "kernel/quant/quant.h"

namespace heed::kernel::attend {

inline bool token_dtype(int32_t dtype) {
  return dtype == HEED_FLOAT32 || dtype == HEED_BFLOAT16 || dtype == HEED_FLOAT16;
}

// The queries lie in the grid, and what counts distances along a line of tokens is off.
inline bool valid_axes(const AttendJob& job) {
  if (job.rank < 1 || job.rank > kMaxAxes || job.block_start || job.slopes || job.relative_bias ||
      job.relative_scale || job.q_position < 0) {
    return false;
  }
  int64_t cells = 1;
  for (int32_t i = 0; i < job.rank; ++i) {
    const Axis& axis = job.axes[i];
    if (axis.stride < 1 || axis.window < axis.stride || axis.length < axis.window) return false;
    cells *= axis.length;
  }
  return job.q_position + job.queries <= cells;
}

// Whether the tables by distance reach from every query to every key that it may see; without a
// window only the segments' ends are looked at.
inline bool valid_tables(const AttendTable& table, const AttendJob& job) {
  if ((table.weight == Weight::kUrpe) != (job.relative_scale != nullptr)) return false;
  if (!job.relative_bias && !job.relative_scale) return true;
  const int64_t low = job.q_position, high = job.q_position + job.queries - 1;
  bool reached = job.reach >= 1 && !job.block_start;
  for (int32_t s = 0; reached && job.queries > 0 && s < job.segment_count; ++s) {
    const Segment& segment = job.segments[s];
    if (segment.length == 0) continue;
    int64_t back = high - segment.position;
    int64_t ahead = segment.position + segment.length - 1 - low;
    if (has_window(job) && job.sinks == 0) back = std::min(back, job.window - 1);
    if (has_window(job) && !job.causal) ahead = std::min(ahead, job.window - 1);
    reached = back < job.reach && (job.causal || ahead < job.reach);
  }
  return reached;
}

inline bool valid_bits(const AttendTable& table, const Segment& segment) {
  if (segment.k_bits == 0 && segment.v_bits == 0) return true;
  const auto fits = [](uint8_t bits, const uint16_t* scale) {
    return bits == 0 || (quant_bits(bits) && scale);
  };
  return table.packed && fits(segment.k_bits, segment.k_scale) &&
         fits(segment.v_bits, segment.v_scale);
}

inline heed_status validate(const AttendTable& table) {
  if (table.struct_size != sizeof(AttendTable) || table.job_count < 0 ||
      (table.job_count > 0 && !table.jobs) || table.group < 1 || table.head_dim < 1 ||
      table.value_dim < 1 || !token_dtype(table.q_dtype) || !token_dtype(table.kv_dtype) ||
      table.soft_cap < 0 || static_cast<int32_t>(table.weight) < 0 ||
      static_cast<int32_t>(table.weight) >= kWeights ||
      (table.weight == Weight::kGeneric) != (table.generic != nullptr)) {
    return HEED_INVALID_ARGUMENT;
  }
  for (int64_t i = 0; i < table.job_count; ++i) {
    const AttendJob& job = table.jobs[i];
    if (job.queries < 0 || job.segment_count < 0 || (job.segment_count > 0 && !job.segments) ||
        (job.queries > 0 && (!job.q || !job.out)) || job.window < 0 ||
        (job.block_start && (table.q_block < 1 || table.k_block < 1)) ||
        (job.axes && !valid_axes(job)) || !valid_tables(table, job)) {
      return HEED_INVALID_ARGUMENT;
    }
    for (int32_t s = 0; s < job.segment_count; ++s) {
      const Segment& segment = job.segments[s];
      if (segment.length < 0 || (segment.length > 0 && (!segment.k || !segment.v)) ||
          !valid_bits(table, segment)) {
        return HEED_INVALID_ARGUMENT;
      }
    }
  }
  return HEED_OK;
}

}  // namespace heed::kernel::attend
