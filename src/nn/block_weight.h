// Weights that stay in the blocks of their file, or are put into blocks while they are read
// (docs/decisions/0019-weights-in-blocks.md); kernel/linear/blocks.h multiplies by them.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "io/tensor_file.h"
#include "kernel/linear/blocks.h"

namespace heed {

// A matrix [out, in] as a file has it: some rows of a tensor, perhaps in another order.
struct StoredMatrix {
  const TensorInfo* tensor = nullptr;
  int64_t first = 0, out = 0;  // rows [first, first + out) of the tensor
  std::vector<int64_t> order;  // row r of the matrix is row first + order[r]; empty: in order
  std::shared_ptr<const TensorFile> file;  // keeps the tensor's bytes

  int64_t in() const { return tensor->row_size(); }
  // Rows [begin, end) of the matrix as float32.
  void read(int64_t begin, int64_t end, float* to) const;
};

// Never changed once made; layers and tied tables share it.
struct BlockWeight {
  kernel::BlockMatrix matrix;
  DType dtype = DType::F32;  // of the blocks
  int64_t bytes = 0;         // that a product reads

  at::Tensor memory;                       // what was put in another order, or into blocks
  std::shared_ptr<const TensorFile> file;  // else the mapped file
};

// The matrix in the blocks that it is stored in. Q8_0, Q4_0 and Q4_1 are put into another order
// (kernel/linear/blocks.h), which replaces the pages of the file in memory; all others stay where
// they are, unless rows change places. Null where float32 is stored: nothing is to be had.
std::shared_ptr<const BlockWeight> keep_blocks(const StoredMatrix& stored);
// The same rounded to blocks of `dtype`, Q8_0 or Q4_0. Null where rows are not whole blocks.
std::shared_ptr<const BlockWeight> make_blocks(const StoredMatrix& stored, DType dtype);

// A tensor [out, in] of one number, NaN: what stands in Weight::data beside blocks, for sizes.
at::Tensor shape_in_blocks(int64_t out, int64_t in);

// x [..., in] float32 times each of `weights`, one after another in the last dimension of what is
// returned, plus biases (each may be undefined); two weights with `gated`: silu(x w0) (x w1). `add`
// (may be undefined) is added. Throws Error where a gradient is asked for, or x is of another type.
at::Tensor linear_blocks(const at::Tensor& x, const std::vector<const BlockWeight*>& weights,
                         const std::vector<at::Tensor>& biases, bool gated, const at::Tensor& add);

// Rows `ids` (int64, any shape) of the matrix: float32 [..., in].
at::Tensor block_rows(const BlockWeight& weight, const at::Tensor& ids);

}  // namespace heed
