// A tile: up to kTile visible keys, gathered from one or more segments (the pages of a cache, sinks
// and a ring, listed blocks), and which of them a group of rows may see.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel/attend/attend.h"
#include "kernel/attend/forward.h"
#include "kernel/attend/keyset.h"

namespace heed::kernel::attend {

struct TileRun {
  const Segment* segment;
  int64_t key;       // first key of the segment
  int first, count;  // place in the tile
  bool listed;       // open by a block list
};

struct Tile {
  int n = 0;
  int runs = 0;
  bool ascending = true;                            // positions rise along the tile
  bool packed_keys = false, packed_values = false;  // some rows are in few bits
  TileExtent extent;
  TileRun run[kTile];

  void clear() {
    n = runs = 0;
    ascending = true;
    packed_keys = packed_values = false;
    extent = {};
  }

  // Adds keys that fit; with `line`, keys of one line of the grid whose last axis it is.
  void add(const Segment& segment, int64_t key, int count, bool listed, const Axis* line) {
    const int64_t position = segment.position + key;
    ascending = ascending && position > extent.max_position;
    extent.min_position = std::min(extent.min_position, position);
    extent.max_position = std::max(extent.max_position, position + count - 1);
    extent.all_listed = extent.all_listed && listed;
    if (line) {
      const int64_t place = position % line->length;
      extent.min_place = std::min(extent.min_place, place);
      extent.max_place = std::max(extent.max_place, place + count - 1);
    }
    packed_keys = packed_keys || segment.k_bits != 0;
    packed_values = packed_values || segment.v_bits != 0;
    run[runs++] = {&segment, key, n, count, listed};
    n += count;
  }
};

// Cuts the keys [begin, end) of the runs of queries [n0, n1) into tiles and calls f(tile).
template <class F>
void for_each_tile(const AttendTable& table, const AttendJob& job, int64_t n0, int64_t n1,
                   int64_t begin, int64_t end, Tile& tile, F&& f) {
  tile.clear();
  const Axis* line = job.axes ? job.axes + job.rank - 1 : nullptr;
  int64_t at = 0;  // keys of the runs so far
  const auto run = [&](const Segment& segment, int64_t first, int64_t count, bool listed) {
    const int64_t skip = std::max<int64_t>(0, begin - at);
    const int64_t stop = std::min(count, end - at);
    at += count;
    for (int64_t j = skip; j < stop;) {
      const int take = static_cast<int>(std::min<int64_t>(kTile - tile.n, stop - j));
      tile.add(segment, first + j, take, listed, line);
      j += take;
      if (tile.n == kTile) {
        f(tile);
        tile.clear();
      }
    }
  };
  for_each_run(table, job, n0, n1, run);
  if (tile.n > 0) {
    f(tile);
    tile.clear();
  }
}

// The tile's positions counted from `base`, clamped to 2^30: enough to compare with. With axes
// `index` holds places on the last axis in their stead.
inline void tile_positions(const AttendJob& job, const Tile& tile, int64_t base, int32_t* index,
                           float* position) {
  constexpr int64_t kClamp = int64_t{1} << 30;
  for (int i = 0; i < tile.runs; ++i) {
    const TileRun& run = tile.run[i];
    int64_t first = run.segment->position + run.key;
    first = job.axes ? first % job.axes[job.rank - 1].length : first - base;
    for (int j = 0; j < run.count; ++j) {
      const int64_t p = std::clamp(first + j, -kClamp, kClamp);
      index[run.first + j] = static_cast<int32_t>(p);
      position[run.first + j] = static_cast<float>(p);
    }
  }
  for (int j = tile.n; j < kTile; ++j) index[j] = 0, position[j] = 0;
}

// 1 for keys that a list opens, else 0.
inline void tile_listed(const Tile& tile, int32_t* listed) {
  std::fill(listed, listed + kTile, 0);
  for (int i = 0; i < tile.runs; ++i) {
    const TileRun& run = tile.run[i];
    if (run.listed) std::fill(listed + run.first, listed + run.first + run.count, 1);
  }
}

// What keys add to the logits of every head of the group (bias, log weight), times log2(e),
// [G][kTile].
inline void tile_bias(const Tile& tile, int32_t group, float* bias) {
  constexpr float kLog2E = 1.44269504088896340736f;
  for (int32_t g = 0; g < group; ++g) {
    float* out = bias + static_cast<int64_t>(g) * kTile;
    for (int i = 0; i < tile.runs; ++i) {
      const TileRun& run = tile.run[i];
      const Segment& segment = *run.segment;
      for (int j = 0; j < run.count; ++j) {
        const float bias =
            segment.bias
                ? segment.bias[(run.key + j) * segment.bias_stride + g * segment.bias_head_stride]
                : 0.0f;
        out[run.first + j] = kLog2E * (bias + segment.log_weight);
      }
    }
    for (int j = tile.n; j < kTile; ++j) out[j] = 0;
  }
}

// Whether the hooks look at the distance of every key.
inline bool needs_positions(const AttendJob& job) {
  return job.slopes || job.relative_bias || job.relative_scale;
}

inline bool has_bias(const AttendJob& job) {
  for (int32_t i = 0; i < job.segment_count; ++i) {
    if (job.segments[i].bias || job.segments[i].log_weight != 0) return true;
  }
  return false;
}

// The keys [begin, end) of the tile hold all that rows at positions low .. high (absolute) may see;
// `masked` if some row may not see some of them.
struct TileView {
  int begin = 0, end = 0;
  bool masked = false;
};

// `index` as tile_positions gives it (needed only where the view is masked).
inline TileView tile_view(const AttendJob& job, const Tile& tile, const int32_t* index,
                          int64_t base, int64_t low, int64_t high) {
  if (fully_visible(job, tile.extent, low, high)) return {0, tile.n, false};
  TileView view{0, tile.n, true};
  if (!tile.ascending || job.axes) return view;
  if (job.causal) {
    view.end = static_cast<int>(
        std::upper_bound(index, index + tile.n, static_cast<int32_t>(high - base)) - index);
  }
  const bool lists_open = job.any && job.block_start;
  if (has_window(job) && !lists_open && tile.extent.min_position >= job.sinks) {
    const int64_t first = std::max<int64_t>(low - job.window + 1 - base, -(int64_t{1} << 30));
    view.begin = static_cast<int>(
        std::lower_bound(index, index + tile.n, static_cast<int32_t>(first)) - index);
  }
  view.begin = std::min(view.begin, view.end);
  return view;
}

}  // namespace heed::kernel::attend
