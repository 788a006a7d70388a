// Rows of numbers in few bits: what a cache of keys and values keeps of a row that need not be
// exact.
//
//   x_i ~ centre_i + scale T_b[code_i]
//
// T_b holds the 2^b levels of the best scalar quantiser of a Gaussian (Max, "Quantizing for minimum
// distortion", 1960; b = 2..5) as 8-bit whole numbers, or evenly spaced ones (b = 6, 8). Rows that
// are no Gaussian become nearly so by a rotation: `rotate` multiplies them by a Hadamard matrix
// (QuaRot, arXiv 2404.00456), queries too, which leaves q.k as it is. The scale of a row, a
// bfloat16, is the one of least squares for its codes.
//
// A row of `dim` numbers takes row_bytes(bits, dim) bytes, chunk by chunk of 64 numbers (the last
// one may be shorter; numbers up to the next multiple of 8 are zeros). A chunk of n numbers is
// bits in planes, one behind the other: the lowest four bits (if b >= 4), two bits (b = 2, 3, 6),
// one bit (b = 3, 5):
//   four bits: byte i of n/2 holds number i in its low half, i + n/2 in its high half
//   two bits:  byte i of n/4 holds numbers i, i + n/4, i + n/2, i + 3n/4, lowest bits first
//   one bit:   bit i of n/8 bytes belongs to number i
// With b = 8 a byte is the level itself.
#pragma once

#include <cstdint>

namespace heed::kernel {

inline constexpr int kQuantChunk = 64;
inline constexpr int kQuantBits[] = {2, 3, 4, 5, 6, 8};

inline constexpr bool quant_bits(int bits) { return (bits >= 2 && bits <= 6) || bits == 8; }

// Bytes of the codes of a row, its scale (2 bytes) not counted.
inline constexpr int64_t row_bytes(int bits, int64_t dim) { return (dim + 7) / 8 * bits; }

// Turns `count` rows of `dim` numbers, `stride` apart, in place: each block of numbers that is the
// largest power of two dividing `dim` by the Hadamard matrix of that size over the root of it. The
// same again turns them back.
void rotate(float* x, int64_t count, int64_t stride, int64_t dim);

// Rows x [count, dim], `stride` apart, less `centre` [dim] (NULL: 0), to codes [count,
// row_bytes] and bfloat16 scales [count]. A row with a number that is not finite gets the scale
// NaN.
void encode_rows(int bits, const float* x, int64_t stride, int64_t count, int64_t dim,
                 const float* centre, uint8_t* codes, uint16_t* scales);

// The rows again [count, dim], `stride` apart, codes `code_stride` bytes apart.
void decode_rows(int bits, const uint8_t* codes, int64_t code_stride, const uint16_t* scales,
                 int64_t count, int64_t dim, const float* centre, float* out, int64_t stride);

// Number i of a row of codes as its level T_b[code]: the layout above, word by word.
int quant_level(int bits, const uint8_t* row, int64_t dim, int64_t i);

namespace quant {

// T_b, ascending, for b <= 5; repeated to 16 entries where there are fewer, so that every 16-byte
// lookup is defined. b = 5: 32 entries.
const int8_t* levels(int bits);
// Levels a standard deviation.
float levels_a_unit(int bits);

}  // namespace quant
}  // namespace heed::kernel
