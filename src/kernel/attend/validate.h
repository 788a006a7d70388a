// What attend takes: sizes and dtypes of a table.
#pragma once

#include "kernel/attend/attend.h"

namespace heed::kernel::attend {

inline bool token_dtype(int32_t dtype) {
  return dtype == HEED_FLOAT32 || dtype == HEED_BFLOAT16 || dtype == HEED_FLOAT16;
}

inline heed_status validate(const AttendTable& table) {
  if (table.struct_size != sizeof(AttendTable) || table.job_count < 0 ||
      (table.job_count > 0 && !table.jobs) || table.group < 1 || table.head_dim < 1 ||
      table.head_dim > 256 || table.value_dim < 1 || table.value_dim > 256 ||
      !token_dtype(table.q_dtype) || !token_dtype(table.kv_dtype) || table.soft_cap < 0 ||
      (table.weight != Weight::kSoftmax && table.weight != Weight::kSigmoid)) {
    return HEED_INVALID_ARGUMENT;
  }
  for (int64_t i = 0; i < table.job_count; ++i) {
    const AttendJob& job = table.jobs[i];
    if (job.queries < 0 || job.segment_count < 0 || (job.segment_count > 0 && !job.segments) ||
        (job.queries > 0 && (!job.q || !job.out)) || job.window < 0 ||
        (job.block_start && (table.q_block < 1 || table.k_block < 1))) {
      return HEED_INVALID_ARGUMENT;
    }
    for (int32_t s = 0; s < job.segment_count; ++s) {
      const Segment& segment = job.segments[s];
      if (segment.length < 0 || (segment.length > 0 && (!segment.k || !segment.v))) {
        return HEED_INVALID_ARGUMENT;
      }
    }
  }
  return HEED_OK;
}

}  // namespace heed::kernel::attend
