// How a forward call is cut up, between forward.cc (plans, runs, merges) and forward_simd.cc
// (computes).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernel/attend/attend.h"
#include "kernel/attend/merge.h"

namespace heed::kernel::attend {

inline constexpr int kTile = 128;       // keys a tile
inline constexpr int kGroup = 6;        // rows that the micro-kernels compute together
inline constexpr int kMaxRows = 384;    // rows (query, head of the group) a unit, if G allows
inline constexpr int kWideDims = 512;   // D + Dv up to which units have so many rows
inline constexpr int kDirectRows = 24;  // up to so many rows, keys and values are read in place

// Consecutive queries of one job, all heads of its group; row r is query n0 + r / G, head r % G.
struct ForwardUnit {
  int64_t job = 0;
  int64_t n0 = 0, n1 = 0;
  int64_t keys = 0;        // length of its runs of keys laid one after another
  int64_t first_part = 0;  // floats before its first part in the buffer of partial results
  int32_t parts = 1;       // items that it is cut into
};

// The keys [key_begin, key_end) of a unit, counted along its runs.
struct ForwardItem {
  int64_t unit = 0;
  int64_t key_begin = 0, key_end = 0;
  int32_t part = 0;
};

// A worker's memory; sizes in forward_scratch_floats.
struct ForwardScratch {
  SoftmaxPart<float>* parts;  // a row
  float* o;                   // a row: sum of weights times values, unnormalised, [rows][value_pad]
  float* q;                   // queries times scale: interleaved by groups, or [rows][key_pad]
  float* s;                   // logits, then weights, of a group of rows: [kGroup][kTile]
  float* k;                   // the packed tile of keys
  float* v;                   // the packed tile of values [kTile][value_pad]
  float* rows;                // keys out of few bits, before they are packed [kTile][key_pad]
  float* bias;                // [G][kTile], times log2(e)
  float* position;            // of the tile's keys, from the unit's first query; int32 and float
  int32_t* index;
  int32_t* listed;  // 1 where a list opens the key
};

inline int64_t pad16(int64_t n) { return (n + 15) / 16 * 16; }

// Rows a unit, fewer where wide heads would leave the caches.
inline int64_t rows_a_unit(const AttendTable& table, int64_t most) {
  const int64_t dims = static_cast<int64_t>(table.head_dim) + table.value_dim;
  if (dims <= kWideDims) return most;
  return std::max<int64_t>(most * kWideDims / dims / kGroup * kGroup, kGroup);
}

inline int64_t forward_scratch_floats(const AttendTable& table, int64_t rows) {
  const int64_t key = pad16(table.head_dim), value = pad16(table.value_dim);
  return pad16(2 * rows) + rows * value + pad16(rows + kGroup) * key + kGroup * kTile +
         kTile * (key + value + (table.packed ? key : 0)) +
         static_cast<int64_t>(table.group) * kTile + 3 * kTile;
}

inline ForwardScratch forward_scratch(const AttendTable& table, int64_t rows, float* memory) {
  const int64_t key = pad16(table.head_dim), value = pad16(table.value_dim);
  ForwardScratch scratch;
  const auto take = [&memory](int64_t floats) {
    float* at = memory;
    memory += floats;
    return at;
  };
  scratch.parts = reinterpret_cast<SoftmaxPart<float>*>(take(pad16(2 * rows)));
  scratch.o = take(rows * value);
  scratch.q = take(pad16(rows + kGroup) * key);
  scratch.s = take(kGroup * kTile);
  scratch.k = take(kTile * key);
  scratch.v = take(kTile * value);
  scratch.rows = take(table.packed ? kTile * key : 0);
  scratch.bias = take(static_cast<int64_t>(table.group) * kTile);
  scratch.position = take(kTile);
  scratch.index = reinterpret_cast<int32_t*>(take(kTile));
  scratch.listed = reinterpret_cast<int32_t*>(take(kTile));
  return scratch;
}

// Whether this processor has instructions that the vector kernels are compiled for; if not, calls
// run the reference.
bool has_vectors();

// Computes parts and o of an item in the scratch memory, with the best instructions at hand.
void forward_item(const AttendTable& table, const ForwardUnit& unit, const ForwardItem& item,
                  const ForwardScratch& scratch);

}  // namespace heed::kernel::attend
