// Cuts the rows of all jobs into units.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernel/attend/forward.h"
#include "kernel/attend/keys.h"

namespace heed::kernel::attend {

inline int64_t rows_of(const AttendTable& table, const ForwardUnit& unit) {
  return (unit.n1 - unit.n0) * table.group;
}

// Fills `units`, each with at most `max_rows` rows (at least one query), of one query block where
// there are block lists. Returns the most rows that a unit has.
inline int64_t plan_units(const AttendTable& table, int64_t max_rows,
                          std::vector<ForwardUnit>& units) {
  units.clear();
  int64_t most_rows = 0;
  const int64_t most = std::max<int64_t>(1, max_rows / table.group);
  for (int64_t i = 0; i < table.job_count; ++i) {
    const AttendJob& job = table.jobs[i];
    const int64_t block = job.block_start ? table.q_block : std::max<int64_t>(job.queries, 1);
    for (int64_t start = 0; start < job.queries; start += block) {
      const int64_t queries = std::min(block, job.queries - start);
      const int64_t count = (queries + most - 1) / most;
      // Units of equal size, in whole groups of the micro-kernel.
      const int64_t even = ((queries + count - 1) / count + kGroup - 1) / kGroup * kGroup;
      const int64_t step = std::min(most, even);
      for (int64_t n0 = start; n0 < start + queries; n0 += step) {
        ForwardUnit unit;
        unit.job = i;
        unit.n0 = n0;
        unit.n1 = std::min(n0 + step, start + queries);
        unit.keys = count_keys(table, job, unit.n0, unit.n1);
        most_rows = std::max(most_rows, rows_of(table, unit));
        units.push_back(unit);
      }
    }
  }
  return most_rows;
}

}  // namespace heed::kernel::attend
