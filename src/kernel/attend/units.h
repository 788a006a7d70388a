// Cuts the rows of all jobs into units.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernel/attend/forward.h"
#include "kernel/attend/keyset.h"

namespace heed::kernel::attend {

inline int64_t rows_of(const AttendTable& table, const ForwardUnit& unit) {
  return (unit.n1 - unit.n0) * table.group;
}

// How many queries of a line share their keys: more read keys that few of them see, fewer read keys
// more often.
inline int64_t line_queries(const Axis& line, int32_t group) {
  const int64_t least = std::max<int64_t>(kDirectRows / group, 1);
  return std::max(least, (line.window + line.stride) / kGroup * kGroup);
}

// Fills `units`, each with at most `max_rows` rows (at least one query), of one unit_block. Returns
// the most rows that a unit has.
inline int64_t plan_units(const AttendTable& table, int64_t max_rows,
                          std::vector<ForwardUnit>& units) {
  units.clear();
  int64_t most_rows = 0;
  for (int64_t i = 0; i < table.job_count; ++i) {
    const AttendJob& job = table.jobs[i];
    const int64_t block = unit_block(table, job);
    int64_t most = std::max<int64_t>(1, max_rows / table.group);
    if (job.axes) most = std::min(most, line_queries(job.axes[job.rank - 1], table.group));
    // The first block of a grid may be cut: a decoding step begins inside a line.
    const int64_t ahead = job.axes ? job.q_position % block : 0;
    for (int64_t start = 0, next; start < job.queries; start = next) {
      next = std::min(job.queries, ((start + ahead) / block + 1) * block - ahead);
      const int64_t queries = next - start;
      const int64_t count = (queries + most - 1) / most;
      // Units of equal size, in whole groups of the micro-kernel.
      const int64_t even = ((queries + count - 1) / count + kGroup - 1) / kGroup * kGroup;
      const int64_t step = std::min(most, even);
      for (int64_t n0 = start; n0 < next; n0 += step) {
        ForwardUnit unit;
        unit.job = i;
        unit.n0 = n0;
        unit.n1 = std::min(n0 + step, next);
        unit.keys = count_keys(table, job, unit.n0, unit.n1);
        most_rows = std::max(most_rows, rows_of(table, unit));
        units.push_back(unit);
      }
    }
  }
  return most_rows;
}

}  // namespace heed::kernel::attend
