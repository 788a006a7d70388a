// The keys that a range of queries may see: spans of positions, runs of keys of the segments, what
// a tile of keys needs masking for. The one place of the visibility rule for the kernels (attend.h
// says it in words; the reference and the naive form of op/ keep their own dense rule, which this
// is tested against). The vector form of the mask is mask_rows of logits-inl.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernel/attend/attend.h"

namespace heed::kernel::attend {

// Far from overflow when a window or a position is added.
inline constexpr int64_t kFar = std::numeric_limits<int64_t>::max() / 4;

inline bool has_window(const AttendJob& job) { return job.window > 0 && job.window < kFar; }

// Places of an axis, from `begin` on and before `end`.
struct Places {
  int64_t begin = 0, end = 0;
};

inline Places seen(const Axis& axis, int64_t u) {
  const int64_t group = u / axis.stride * axis.stride;
  const int64_t last = axis.length - 1;
  if (axis.causal) {
    const int64_t leader = std::min(group + axis.stride - 1, last);
    return {std::max<int64_t>(leader - axis.window + 1, 0), u + 1};
  }
  const int64_t leader = std::min(group + axis.stride / 2, last);
  const int64_t begin =
      std::min(std::max<int64_t>(leader - axis.window / 2, 0), axis.length - axis.window);
  return {begin, begin + axis.window};
}

// Queries that are computed together share a query block and a line of the grid.
inline int64_t unit_block(const AttendTable& table, const AttendJob& job) {
  if (job.axes) return job.axes[job.rank - 1].length;
  return job.block_start ? table.q_block : std::max<int64_t>(job.queries, 1);
}

// Calls f(begin, end, listed), in rising order, for spans of positions inside [p0, p1) that hold
// every position that one of the queries [n0, n1) may see, and none that none of them may see.
// listed: by a block list that opens its keys whatever the window says.
struct SpanFinder {
  const AttendTable& table;
  const AttendJob& job;
  int64_t low, high;                                 // positions of the first and the last query
  int64_t begins[2] = {-kFar, 0}, ends[2] = {0, 0};  // the sinks and the window
  int spans = 1;
  const int32_t* blocks = nullptr;
  const int32_t* blocks_end = nullptr;

  SpanFinder(const AttendTable& table, const AttendJob& job, int64_t n0, int64_t n1)
      : table(table), job(job), low(job.q_position + n0), high(job.q_position + n1 - 1) {
    ends[0] = job.causal ? high + 1 : kFar;
    if (has_window(job)) {
      const int64_t end = ends[0];
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
    if (job.block_start) {
      const int64_t block = n0 / table.q_block;
      blocks = job.block_index + job.block_start[block];
      blocks_end = job.block_index + job.block_start[block + 1];
    }
  }

  template <class F>
  void operator()(int64_t p0, int64_t p1, F&& f) const {
    if (job.axes) return lines(p0, p1, f);
    if (job.block_start && job.any) return united(p0, p1, f);
    for (int span = 0; span < spans; ++span) {
      const int64_t a = std::max(p0, begins[span]), b = std::min(p1, ends[span]);
      if (a >= b) continue;
      if (job.block_start) {
        listed(a, b, [&](int64_t from, int64_t to) { f(from, to, false); });
      } else {
        f(a, b, false);
      }
    }
  }

  // Calls f(from, to) for the listed positions of [a, b); blocks side by side make one run.
  template <class F>
  void listed(int64_t a, int64_t b, F&& f) const {
    const int64_t size = table.k_block;
    const int32_t* it =
        std::lower_bound(blocks, blocks_end, static_cast<int32_t>(std::max<int64_t>(a, 0) / size));
    while (it != blocks_end && *it * size < b) {
      const int32_t* last = it;
      while (last + 1 != blocks_end && last[1] == *last + 1) ++last;
      const int64_t from = std::max(a, *it * size);
      const int64_t to = std::min(b, (static_cast<int64_t>(*last) + 1) * size);
      if (from < to) f(from, to);
      it = last + 1;
    }
  }

  // Listed positions, and those of the sinks and the window between them.
  template <class F>
  void united(int64_t p0, int64_t p1, F&& f) const {
    const int64_t end = job.causal ? std::min(p1, high + 1) : p1;
    const auto between = [&](int64_t a, int64_t b) {
      for (int span = 0; span < spans; ++span) {
        const int64_t from = std::max(a, begins[span]), to = std::min(b, ends[span]);
        if (from < to) f(from, to, false);
      }
    };
    int64_t at = p0;
    listed(p0, end, [&](int64_t from, int64_t to) {
      between(at, from);
      f(from, to, true);
      at = to;
    });
    between(at, end);
  }

  // Lines of the grid along its last axis.
  template <class F>
  void lines(int64_t p0, int64_t p1, F&& f) const {
    const Axis& line = job.axes[job.rank - 1];
    int64_t rest = low / line.length;  // the line of the queries
    Places outer[2] = {{0, 1}, {0, 1}};
    int64_t width[2] = {1, 1};
    for (int i = job.rank - 2, slot = 1; i >= 0; --i, --slot) {
      outer[slot] = seen(job.axes[i], rest % job.axes[i].length);
      width[slot] = job.axes[i].length;
      rest /= job.axes[i].length;
    }
    const int64_t first = low % line.length;
    const Places columns{seen(line, first).begin, seen(line, first + high - low).end};
    for (int64_t x = outer[0].begin; x < outer[0].end; ++x) {
      for (int64_t y = outer[1].begin; y < outer[1].end; ++y) {
        const int64_t start = (x * width[1] + y) * line.length;
        const int64_t a = std::max(p0, start + columns.begin);
        const int64_t b = std::min(p1, start + columns.end);
        if (a < b) f(a, b, false);
      }
    }
  }
};

// Calls f(segment, first, count, listed), in the order of the segments, for runs of keys: the spans
// above. With block lists or axes the queries must lie in one unit_block.
template <class F>
void for_each_run(const AttendTable& table, const AttendJob& job, int64_t n0, int64_t n1, F&& f) {
  const SpanFinder finder(table, job, n0, n1);
  for (int32_t s = 0; s < job.segment_count; ++s) {
    const Segment& segment = job.segments[s];
    finder(segment.position, segment.position + segment.length,
           [&](int64_t from, int64_t to, bool listed) {
             f(segment, from - segment.position, to - from, listed);
           });
  }
}

inline int64_t count_keys(const AttendTable& table, const AttendJob& job, int64_t n0, int64_t n1) {
  int64_t keys = 0;
  for_each_run(table, job, n0, n1,
               [&](const Segment&, int64_t, int64_t count, bool) { keys += count; });
  return keys;
}

// What is known of a tile of keys: its range of positions, of places on the last axis, and whether
// all of its keys are open by a list.
struct TileExtent {
  int64_t min_position = kFar, max_position = -kFar;
  int64_t min_place = kFar, max_place = -kFar;
  bool all_listed = true;
};

// Whether every row at positions low .. high sees every key.
inline bool fully_visible(const AttendJob& job, const TileExtent& tile, int64_t low, int64_t high) {
  if (job.axes) {
    const Axis& line = job.axes[job.rank - 1];
    const int64_t first = low % line.length;
    return tile.min_place >= seen(line, first + high - low).begin &&
           tile.max_place < seen(line, first).end;
  }
  if (job.causal && tile.max_position > low) return false;
  if (job.any && job.block_start && tile.all_listed) return true;
  if (!has_window(job) || tile.max_position < job.sinks) return true;
  return tile.min_position > high - job.window &&
         (job.causal || tile.max_position < low + job.window);
}

}  // namespace heed::kernel::attend
