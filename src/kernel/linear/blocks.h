// Products with weights that stay in the blocks of their file. Formats: ggml-common.h and
// ggml-quants.c of github.com/ggml-org/ggml. Rows lie interleaved, sixteen by sixteen, as
// ik_llama.cpp does it (github.com/ikawrakow/ik_llama.cpp, Q4_0_R8 and its like): a lane is a row,
// so no sum is ever taken across lanes, and activations are rounded to int8 once a row, in blocks
// of 32 as ggml's Q8_1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "heed/view.h"

namespace heed::kernel {

enum class BlockType : int32_t {
  // Interleaved (pack_rows), multiplied as int8:
  kQ8_0,
  kQ4_0,
  kQ4_1,
  // Row by row as the file has them, multiplied as float32:
  kFloat32,
  kFloat16,
  kBfloat16,
  kOther,  // by BlockMatrix::unpack
};
inline constexpr bool is_packed(BlockType type) { return type <= BlockType::kQ4_1; }

inline constexpr int64_t kBlock = 32;       // numbers that share a scale
inline constexpr int64_t kPackedRows = 16;  // rows that lie interleaved

// A matrix [out, in].
struct BlockMatrix {
  BlockType type = BlockType::kFloat32;
  int64_t out = 0, in = 0;
  const std::byte* data = nullptr;
  int64_t row_bytes = 0;  // of rows that are not interleaved
  // `count` numbers of format `format` from `from`: for kOther.
  void (*unpack)(int32_t format, const std::byte* from, int64_t count, float* to) = nullptr;
  int32_t format = 0;
};

// Bytes of an interleaved matrix: those of its blocks, with `out` rounded up to whole groups.
int64_t packed_bytes(BlockType type, int64_t out, int64_t in);
// Bytes of one row of such a matrix as its file has it.
int64_t stored_row_bytes(BlockType type, int64_t in);
// Groups [begin, end) of sixteen rows of a matrix of packed_bytes() at `to`. Row r is row order[r]
// of `rows` (null: row r), as a GGUF file has them; rows beyond `out` are zeros.
void pack_rows(BlockType type, const std::byte* rows, const int64_t* order, int64_t out, int64_t in,
               int64_t begin, int64_t end, std::byte* to);

// Rows [begin, end) as float32, exactly: to[(r - begin) in + k].
void unpack_rows(const BlockMatrix& w, int64_t begin, int64_t end, float* to);

// One product of a call: y[m, n] = sum_k x[m, k] w[n, k] + bias[n], times silu of the same with
// `gate` and `gate_bias`, plus add[m, n]. Null: without. add may be y.
struct BlockProduct {
  const BlockMatrix* w = nullptr;
  const float* bias = nullptr;
  const BlockMatrix* gate = nullptr;  // of w's shape
  const float* gate_bias = nullptr;
  const float* add = nullptr;
  int64_t add_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

// Products of the same activations x [rows, in], contiguous. Interleaved matrices meet x rounded to
// 16 bits (`fine`; relative error of a product about 2e-5) or 8 (0.006), all others x as it is. A
// number in x that is not finite makes all products of its row so (NaN, where rounded). A row's
// sums depend neither on the other rows nor on the threads.
struct BlockCall {
  const float* x = nullptr;
  int64_t rows = 0, in = 0;
  const BlockProduct* products = nullptr;
  int64_t count = 0;
  bool fine = true;
};

// Scratch that linear_blocks() needs, in bytes; its start must be a multiple of 64.
int64_t linear_blocks_scratch(const BlockCall& call, const heed_parallel* parallel);
void linear_blocks(const BlockCall& call, std::byte* scratch, const heed_parallel* parallel);
// The same by plain loops, on one thread.
void linear_blocks_reference(const BlockCall& call, std::byte* scratch);

}  // namespace heed::kernel
