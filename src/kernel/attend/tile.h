// A tile: up to kTile visible keys, gathered from one or more segments (the pages of a cache, sinks
// and a ring, listed blocks), and which of them a group of rows may see.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel/attend/attend.h"
#include "kernel/attend/forward.h"
#include "kernel/attend/keys.h"

namespace heed::kernel::attend {

struct TileRun {
  const Segment* segment;
  int64_t key;       // first key of the segment
  int first, count;  // place in the tile
};

struct Tile {
  int n = 0;
  int runs = 0;
  bool ascending = true;  // positions rise along the tile
  int64_t min_position = kFar, max_position = -kFar;
  TileRun run[kTile];

  void clear() {
    n = runs = 0;
    ascending = true;
    min_position = kFar, max_position = -kFar;
  }

  // Adds keys that fit.
  void add(const Segment& segment, int64_t key, int count) {
    const int64_t position = segment.position + key;
    ascending = ascending && position > max_position;
    min_position = std::min(min_position, position);
    max_position = std::max(max_position, position + count - 1);
    run[runs++] = {&segment, key, n, count};
    n += count;
  }
};

// Cuts the keys [begin, end) of the runs of queries [n0, n1) into tiles and calls f(tile).
template <class F>
void for_each_tile(const AttendTable& table, const AttendJob& job, int64_t n0, int64_t n1,
                   int64_t begin, int64_t end, Tile& tile, F&& f) {
  tile.clear();
  int64_t at = 0;  // keys of the runs so far
  for_each_run(table, job, n0, n1, [&](const Segment& segment, int64_t first, int64_t count) {
    const int64_t skip = std::max<int64_t>(0, begin - at);
    const int64_t stop = std::min(count, end - at);
    at += count;
    for (int64_t j = skip; j < stop;) {
      const int take = static_cast<int>(std::min<int64_t>(kTile - tile.n, stop - j));
      tile.add(segment, first + j, take);
      j += take;
      if (tile.n == kTile) {
        f(tile);
        tile.clear();
      }
    }
  });
  if (tile.n > 0) {
    f(tile);
    tile.clear();
  }
}

// The tile's positions counted from `base`, clamped to 2^30: enough to compare with.
inline void tile_positions(const Tile& tile, int64_t base, int32_t* index, float* position) {
  constexpr int64_t kClamp = int64_t{1} << 30;
  for (int i = 0; i < tile.runs; ++i) {
    const TileRun& run = tile.run[i];
    const int64_t first = run.segment->position + run.key - base;
    for (int j = 0; j < run.count; ++j) {
      const int64_t p = std::clamp(first + j, -kClamp, kClamp);
      index[run.first + j] = static_cast<int32_t>(p);
      position[run.first + j] = static_cast<float>(p);
    }
  }
  for (int j = tile.n; j < kTile; ++j) index[j] = 0, position[j] = 0;
}

// The tile's biases of every head of the group, times log2(e), [G][kTile].
inline void tile_bias(const Tile& tile, int32_t group, float* bias) {
  constexpr float kLog2E = 1.44269504088896340736f;
  for (int32_t g = 0; g < group; ++g) {
    float* out = bias + static_cast<int64_t>(g) * kTile;
    for (int i = 0; i < tile.runs; ++i) {
      const TileRun& run = tile.run[i];
      const Segment& segment = *run.segment;
      for (int j = 0; j < run.count; ++j) {
        out[run.first + j] = segment.bias
                                 ? kLog2E * segment.bias[(run.key + j) * segment.bias_stride +
                                                         g * segment.bias_head_stride]
                                 : 0.0f;
      }
    }
    for (int j = tile.n; j < kTile; ++j) out[j] = 0;
  }
}

inline bool has_bias(const AttendJob& job) {
  for (int32_t i = 0; i < job.segment_count; ++i) {
    if (job.segments[i].bias) return true;
  }
  return false;
}

// The keys [begin, end) of the tile hold all that rows at positions low .. high (absolute) may see;
// `masked` if some row may not see some of them.
struct TileView {
  int begin = 0, end = 0;
  bool masked = false;
};

// `index` holds the positions counted from `base` (needed only where the view is masked).
inline bool fully_visible(const AttendJob& job, const Tile& tile, int64_t low, int64_t high) {
  if (job.causal && tile.max_position > low) return false;
  if (job.window <= 0 || job.window >= kFar || tile.max_position < job.sinks) return true;
  return tile.min_position > high - job.window &&
         (job.causal || tile.max_position < low + job.window);
}

inline TileView tile_view(const AttendJob& job, const Tile& tile, const int32_t* index,
                          int64_t base, int64_t low, int64_t high) {
  if (fully_visible(job, tile, low, high)) return {0, tile.n, false};
  TileView view{0, tile.n, true};
  if (!tile.ascending) return view;
  if (job.causal) {
    view.end = static_cast<int>(
        std::upper_bound(index, index + tile.n, static_cast<int32_t>(high - base)) - index);
  }
  if (job.window > 0 && job.window < kFar && tile.min_position >= job.sinks) {
    const int64_t first = std::max<int64_t>(low - job.window + 1 - base, -(int64_t{1} << 30));
    view.begin = static_cast<int>(
        std::lower_bound(index, index + tile.n, static_cast<int32_t>(first)) - index);
  }
  view.begin = std::min(view.begin, view.end);
  return view;
}

}  // namespace heed::kernel::attend
