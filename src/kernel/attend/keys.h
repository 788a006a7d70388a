// The keys that a query, or a range of queries, may see: the visibility rule of attend.h, and runs
// of visible keys that the kernels cut into tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernel/attend/attend.h"

namespace heed::kernel::attend {

// Far from overflow when a window or a position is added.
inline constexpr int64_t kFar = std::numeric_limits<int64_t>::max() / 4;

// Whether query n may see the key at `position` (the bias apart).
inline bool visible(const AttendTable& table, const AttendJob& job, int64_t n, int64_t position) {
  const int64_t at = job.q_position + n;
  if (job.causal && position > at) return false;
  if (job.window > 0 && job.window < kFar && position >= job.sinks &&
      !(position > at - job.window && (job.causal || position < at + job.window))) {
    return false;
  }
  if (job.block_start) {
    if (position < 0) return false;
    const int64_t block = n / table.q_block;
    const int32_t* begin = job.block_index + job.block_start[block];
    const int32_t* end = job.block_index + job.block_start[block + 1];
    return std::binary_search(begin, end, static_cast<int32_t>(position / table.k_block));
  }
  return true;
}

// Calls f(segment, first, count), in order, for runs of keys that hold every key that one of the
// queries [n0, n1) may see, and no key that none of them may see. With block lists, all of the
// queries must lie in one query block.
template <class F>
void for_each_run(const AttendTable& table, const AttendJob& job, int64_t n0, int64_t n1, F&& f) {
  const int64_t low = job.q_position + n0;
  const int64_t high = job.q_position + n1 - 1;
  const int64_t end = job.causal ? high + 1 : kFar;
  // Positions [begins[i], ends[i]) of the sinks and of the window.
  int64_t begins[2] = {-kFar, 0};
  int64_t ends[2] = {end, 0};
  int spans = 1;
  if (job.window > 0 && job.window < kFar) {
    const int64_t sink_end = std::min(job.sinks, end);
    const int64_t window_begin = low - job.window + 1;
    const int64_t window_end = job.causal ? end : high + job.window;
    if (window_begin <= sink_end) {
      ends[0] = std::max(sink_end, window_end);
    } else {
      ends[0] = sink_end;
      begins[1] = window_begin;
      ends[1] = window_end;
      spans = 2;
    }
  }
  const int32_t* blocks = nullptr;
  const int32_t* blocks_end = nullptr;
  if (job.block_start) {
    const int64_t block = n0 / table.q_block;
    blocks = job.block_index + job.block_start[block];
    blocks_end = job.block_index + job.block_start[block + 1];
  }
  for (int32_t s = 0; s < job.segment_count; ++s) {
    const Segment& segment = job.segments[s];
    const int64_t p0 = segment.position, p1 = segment.position + segment.length;
    for (int span = 0; span < spans; ++span) {
      const int64_t a = std::max(p0, begins[span]), b = std::min(p1, ends[span]);
      if (a >= b) continue;
      if (!job.block_start) {
        f(segment, a - p0, b - a);
        continue;
      }
      const int64_t size = table.k_block;
      const int32_t* it = std::lower_bound(blocks, blocks_end,
                                           static_cast<int32_t>(std::max<int64_t>(a, 0) / size));
      while (it != blocks_end && *it * size < b) {
        const int32_t* last = it;  // blocks side by side make one run
        while (last + 1 != blocks_end && last[1] == *last + 1) ++last;
        const int64_t from = std::max(a, *it * size);
        const int64_t to = std::min(b, (static_cast<int64_t>(*last) + 1) * size);
        if (from < to) f(segment, from - p0, to - from);
        it = last + 1;
      }
    }
  }
}

inline int64_t count_keys(const AttendTable& table, const AttendJob& job, int64_t n0, int64_t n1) {
  int64_t keys = 0;
  for_each_run(table, job, n0, n1, [&](const Segment&, int64_t, int64_t count) { keys += count; });
  return keys;
}

}  // namespace heed::kernel::attend
