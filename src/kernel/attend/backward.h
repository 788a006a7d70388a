// How a backward call is cut up, between backward.cc (plans, sums up) and backward_simd.cc
// (computes).
#pragma once

#include <cstdint>

#include "kernel/attend/attend.h"
#include "kernel/attend/forward.h"

namespace heed::kernel::attend {

inline constexpr int kMaxBackwardRows = 96;

// What a share of a job's queries adds to the gradients of the job's keys, over all keys of all
// segments laid one after another.
struct BackwardSums {
  float* k;              // [keys][key_pad]
  float* v;              // [keys][value_pad]
  float* bias;           // [G][keys]
  float* slope;          // [G]
  float* relative_bias;  // [G][2P - 1], by distance; NULL where the job has no such table
  float* relative_scale;
};

// Entries of one row of a job's tables by distance.
inline int64_t table_row(const AttendJob& job) {
  return job.relative_bias || job.relative_scale ? 2 * job.reach - 1 : 0;
}

// A worker's memory.
struct BackwardScratch {
  float* q_columns;     // queries, interleaved by groups, times what forward multiplies them by
  float* q_rows;        // queries [rows][key_pad]
  float* grad_columns;  // gradients of the output, interleaved by groups
  float* grad_rows;     // [rows][value_pad]
  float* grad_q;        // [rows][key_pad]
  float* p;             // weights [rows][kTile]
  float* ds;            // gradients of scale q.k times scale [rows][kTile]
  float* dp;            // of the weights, for one group [kGroup][kTile]
  float* cap;           // derivative of the soft cap, for one group [kGroup][kTile]
  float* k_columns;     // the tile, packed
  float* k_rows;
  float* v_columns;
  float* bias;      // [G][kTile]
  float* position;  // [kTile]
  int32_t* index;   // [kTile]
  int32_t* listed;  // [kTile]
  float* lse;       // base 2, a row; 0 where no key was seen
  float* delta;     // a row: sum dO O - dlse
  float* row_sum;   // a row: sum of dX
  float* out;       // one row of the output
};

// Lays the scratch memory out from `memory` on and returns its length in floats; with NULL it only
// counts.
inline int64_t backward_scratch(const AttendTable& table, int64_t rows, float* memory,
                                BackwardScratch* scratch) {
  const int64_t key = pad16(table.head_dim), value = pad16(table.value_dim);
  const int64_t padded = pad16(rows + kGroup);
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* at = memory ? memory + used : nullptr;
    used += pad16(floats);
    return at;
  };
  BackwardScratch s;
  s.q_columns = take(padded * key);
  s.q_rows = take(padded * key);
  s.grad_columns = take(padded * value);
  s.grad_rows = take(padded * value);
  s.grad_q = take(padded * key);
  s.p = take(padded * kTile);
  s.ds = take(padded * kTile);
  s.dp = take(kGroup * kTile);
  s.cap = take(kGroup * kTile);
  s.k_columns = take(kTile * key);
  s.k_rows = take(kTile * key);
  s.v_columns = take(kTile * value);
  s.bias = take(static_cast<int64_t>(table.group) * kTile);
  s.position = take(kTile);
  s.index = reinterpret_cast<int32_t*>(take(kTile));
  s.listed = reinterpret_cast<int32_t*>(take(kTile));
  s.lse = take(padded);
  s.delta = take(padded);
  s.row_sum = take(padded);
  s.out = take(value);
  if (scratch) *scratch = s;
  return used;
}

// Adds one unit (rows as in forward) to the sums and to grad_q. `first_row[s]` is the row of
// segment s in the sums, `keys` their length.
void backward_unit(const AttendTable& table, const AttendGradJob& grad, const ForwardUnit& unit,
                   const int64_t* first_row, int64_t keys, const BackwardSums& sums,
                   const BackwardScratch& scratch);

}  // namespace heed::kernel::attend
