// How interleaved rows and rounded activations lie in memory; see blocks.h.
//
// Of a group of sixteen rows, block by block of 32 numbers: the rows' scales (float16), for Q4_1
// their minima, then vectors of 64 bytes in which row r has bytes 4 r .. 4 r + 3. Q8_0: vector j
// holds numbers 4 j .. 4 j + 3, plus 128. Four bits: vector j holds numbers 8 j .. 8 j + 3 in its
// low halves and 8 j + 4 .. 8 j + 7 in the high ones.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel/linear/blocks.h"

namespace heed::kernel {

struct PackedFormat {
  bool eight_bits, minima;
  int32_t offset;      // what a stored number is above its value
  int64_t data;        // where the vectors begin
  int64_t bytes;       // of one block of a group
  int64_t file_bytes;  // of one block of a row in a file
};
inline constexpr PackedFormat packed_format(BlockType type) {
  switch (type) {
    case BlockType::kQ8_0:
      return {true, false, 128, 32, 32 + 512, 34};
    case BlockType::kQ4_0:
      return {false, false, 8, 32, 32 + 256, 18};
    default:
      return {false, true, 0, 64, 64 + 256, 20};
  }
}

// A row's number k of a block, as stored.
inline int32_t packed_number(const PackedFormat& format, const std::byte* block, int64_t row,
                             int64_t k) {
  const auto* data = reinterpret_cast<const uint8_t*>(block + format.data);
  if (format.eight_bits) return data[k / 4 * 64 + 4 * row + k % 4];
  const uint8_t byte = data[k / 8 * 64 + 4 * row + k % 4];
  return k % 8 < 4 ? byte & 15 : byte >> 4;
}

// Activations rounded: x[m, k] is about scales[m, k / 32] number[m, k], where number is q, or with
// `fine` kRadix q + low.
inline constexpr int32_t kRadix = 254;  // q and low from -127 to 127
struct RoundedRows {
  bool fine;
  int8_t *q, *low;  // [rows, in]
  float* scales;    // [rows, in / 32]
  float* sums;      // [rows, in / 32]: scale times the sum of a block's numbers
  int32_t* counts;  // [rows, in / 32]: the sum of a block's numbers
  // What the largest number of a block becomes; one more would round q up to 128.
  float most() const { return fine ? 127.0f * kRadix + 126.0f : 127.0f; }
};
RoundedRows rounded_rows(std::byte* scratch, const BlockCall& call);
int64_t rounded_bytes(const BlockCall& call);

// Rounds row m: by plain loops.
void round_row_reference(const float* x, int64_t in, int64_t m, const RoundedRows& to);

}  // namespace heed::kernel
