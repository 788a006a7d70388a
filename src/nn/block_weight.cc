// See block_weight.h.
#include "nn/block_weight.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "io/dequant.h"
#include "io/error.h"
#include "io/mapped_file.h"
#include "io/quantise.h"
#include "op/parallel.h"

namespace heed {
namespace {

using kernel::BlockMatrix;
using kernel::BlockType;

BlockType block_type(DType dtype) {
  switch (dtype) {
    case DType::Q8_0:
      return BlockType::kQ8_0;
    case DType::Q4_0:
      return BlockType::kQ4_0;
    case DType::Q4_1:
      return BlockType::kQ4_1;
    case DType::F32:
      return BlockType::kFloat32;
    case DType::F16:
      return BlockType::kFloat16;
    case DType::BF16:
      return BlockType::kBfloat16;
    default:
      return BlockType::kOther;
  }
}

void unpack_format(int32_t format, const std::byte* from, int64_t count, float* to) {
  dequantize(static_cast<DType>(format), from, count, to);
}

std::shared_ptr<BlockWeight> empty_weight(DType dtype, int64_t out, int64_t in) {
  auto weight = std::make_shared<BlockWeight>();
  weight->dtype = dtype;
  weight->matrix.type = block_type(dtype);
  weight->matrix.out = out;
  weight->matrix.in = in;
  weight->matrix.unpack = unpack_format;
  weight->matrix.format = static_cast<int32_t>(dtype);
  const DTypeInfo& info = dtype_info(dtype);
  weight->matrix.row_bytes = in / info.block * info.bytes;
  return weight;
}

std::byte* allocate(BlockWeight& weight, int64_t bytes) {
  weight.bytes = bytes;
  weight.memory = at::empty({bytes}, at::kByte);
  auto* data = reinterpret_cast<std::byte*>(weight.memory.mutable_data_ptr<uint8_t>());
  weight.matrix.data = data;
  return data;
}

// Some thousand numbers a task, whole groups of rows.
int64_t groups_a_task(int64_t in) {
  return std::max<int64_t>(1, 65536 / (kernel::kPackedRows * std::max<int64_t>(in, 1)));
}

int64_t groups_of(int64_t out) { return (out + kernel::kPackedRows - 1) / kernel::kPackedRows; }

}  // namespace

void StoredMatrix::read(int64_t begin, int64_t end, float* to) const {
  if (order.empty()) return dequantize_rows(*tensor, first + begin, first + end, to);
  for (int64_t r = begin; r < end; ++r, to += in()) {
    dequantize_rows(*tensor, first + order[r], first + order[r] + 1, to);
  }
}

std::shared_ptr<const BlockWeight> keep_blocks(const StoredMatrix& stored) {
  const DType dtype = stored.tensor->dtype;
  if (dtype == DType::F32) return nullptr;
  auto weight = empty_weight(dtype, stored.out, stored.in());
  const BlockMatrix& m = weight->matrix;
  const std::byte* rows = stored.tensor->data + stored.first * m.row_bytes;
  const int64_t* order = stored.order.empty() ? nullptr : stored.order.data();
  if (kernel::is_packed(m.type)) {
    std::byte* to = allocate(*weight, kernel::packed_bytes(m.type, m.out, m.in));
    at::parallel_for(0, groups_of(m.out), groups_a_task(m.in), [&](int64_t begin, int64_t end) {
      kernel::pack_rows(m.type, rows, order, m.out, m.in, begin, end, to);
    });
  } else if (order) {
    std::byte* to = allocate(*weight, m.out * m.row_bytes);
    for (int64_t r = 0; r < m.out; ++r) {
      std::memcpy(to + r * m.row_bytes, rows + order[r] * m.row_bytes,
                  static_cast<size_t>(m.row_bytes));
    }
  } else {
    weight->matrix.data = rows;
    weight->bytes = m.out * m.row_bytes;
    weight->file = stored.file;
    return weight;
  }
  forget_pages({rows, static_cast<size_t>(m.out * m.row_bytes)});
  return weight;
}

std::shared_ptr<const BlockWeight> make_blocks(const StoredMatrix& stored, DType dtype) {
  const int64_t in = stored.in();
  if (in % kernel::kBlock != 0) return nullptr;
  if (stored.tensor->dtype == dtype) return keep_blocks(stored);
  auto weight = empty_weight(dtype, stored.out, in);
  const BlockMatrix& m = weight->matrix;
  std::byte* to = allocate(*weight, kernel::packed_bytes(m.type, m.out, m.in));
  const int64_t group_bytes = kernel::packed_bytes(m.type, 1, in);
  at::parallel_for(0, groups_of(m.out), groups_a_task(in), [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(kernel::kPackedRows * in));
    std::vector<std::byte> blocks(static_cast<size_t>(kernel::kPackedRows * m.row_bytes));
    for (int64_t g = begin; g < end; ++g) {
      const int64_t row = g * kernel::kPackedRows;
      const int64_t count = std::min(kernel::kPackedRows, m.out - row);
      stored.read(row, row + count, values.data());
      quantise(dtype, values.data(), count * in, blocks.data());
      kernel::pack_rows(m.type, blocks.data(), nullptr, count, in, 0, 1, to + g * group_bytes);
    }
  });
  forget_pages({stored.tensor->data + stored.first * stored.tensor->row_bytes(),
                static_cast<size_t>(m.out * stored.tensor->row_bytes())});
  return weight;
}

at::Tensor shape_in_blocks(int64_t out, int64_t in) {
  return at::full({1, 1}, std::numeric_limits<float>::quiet_NaN(), at::kFloat).expand({out, in});
}

// ----------------------------------------------------------------------------------------------
// products

namespace {

// Memory that the products of a step share: nothing is allocated once it is large enough.
std::byte* scratch_of(int64_t bytes, at::Tensor& large) {
  constexpr int64_t kKept = 4 << 20;
  thread_local at::Tensor kept;
  at::Tensor& memory = bytes <= kKept ? kept : large;
  if (!memory.defined() || memory.numel() < bytes) {
    memory = at::empty({bytes <= kKept ? std::max<int64_t>(bytes, 1 << 20) : bytes}, at::kByte);
  }
  return reinterpret_cast<std::byte*>(memory.mutable_data_ptr<uint8_t>());
}

// From how many rows of x on it is worth while to unpack a matrix whose rows are not interleaved.
constexpr int64_t kManyRows = 16;

const float* floats_of(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}

// y [rows, out] = x w^T by tiles of w in float32: for many rows of x.
void multiply_tiles(const at::Tensor& x, const BlockMatrix& w, const at::Tensor& y) {
  constexpr int64_t kTileBytes = 8 << 20;
  const int64_t rows = std::clamp<int64_t>(kTileBytes / (4 * w.in), 64, w.out > 64 ? w.out : 64);
  const at::Tensor tile = at::empty({std::min(rows, w.out), w.in}, at::kFloat);
  for (int64_t n = 0; n < w.out; n += rows) {
    const int64_t count = std::min(rows, w.out - n);
    float* to = tile.mutable_data_ptr<float>();
    at::parallel_for(0, count, std::max<int64_t>(1, 65536 / w.in), [&](int64_t begin, int64_t end) {
      kernel::unpack_rows(w, n + begin, n + end, to + begin * w.in);
    });
    y.narrow(1, n, count).copy_(at::mm(x, tile.narrow(0, 0, count).t()));
  }
}

void check_product(const at::Tensor& x, const BlockWeight& w) {
  if (at::GradMode::is_enabled() && x.requires_grad()) {
    throw Error("weights in blocks have no gradients; load the model with exact weights");
  }
  if (!x.is_cpu() || x.scalar_type() != at::kFloat) {
    throw Error("weights in blocks are for float32 on the CPU, not {} on {}",
                c10::toString(x.scalar_type()), x.device().str());
  }
  if (x.size(-1) != w.matrix.in) {
    throw Error("a matrix of {} columns does not go with {} numbers a row", w.matrix.in,
                x.size(-1));
  }
}

}  // namespace

at::Tensor linear_blocks(const at::Tensor& x_in, const std::vector<const BlockWeight*>& weights,
                         const std::vector<at::Tensor>& biases, bool gated, const at::Tensor& add) {
  for (const BlockWeight* w : weights) check_product(x_in, *w);
  const at::Tensor x = x_in.contiguous();
  const int64_t in = x.size(-1), rows = x.numel() / std::max<int64_t>(in, 1);
  int64_t out = 0;
  bool tiles = rows > kManyRows;
  for (const BlockWeight* w : weights) {
    out += w->matrix.out;
    tiles = tiles && !kernel::is_packed(w->matrix.type);
  }
  if (gated) out /= 2;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = out;
  const at::Tensor y = at::empty(sizes, x.options());
  if (rows == 0 || out == 0) return y;
  const at::Tensor y2 = y.view({rows, out}), residual = add.defined() ? add.contiguous() : add;
  if (tiles) {
    const at::Tensor x2 = x.view({rows, in});
    std::vector<at::Tensor> parts;
    int64_t n = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t width = weights[i]->matrix.out;
      parts.push_back(gated ? at::empty({rows, width}, x.options()) : y2.narrow(1, n, width));
      multiply_tiles(x2, weights[i]->matrix, parts.back());
      if (biases[i].defined()) parts.back().add_(biases[i]);
      n += width;
    }
    if (gated) at::mul_out(const_cast<at::Tensor&>(y2), at::silu_(parts[0]), parts[1]);
    if (residual.defined()) y2.add_(residual.view({rows, out}));
    return y;
  }
  std::vector<kernel::BlockProduct> products;
  float* to = y.mutable_data_ptr<float>();
  for (size_t i = gated ? 1 : 0; i < weights.size(); ++i) {
    kernel::BlockProduct p;
    p.w = &weights[i]->matrix;
    p.bias = floats_of(biases[i]);
    if (gated) {
      p.gate = &weights[0]->matrix;
      p.gate_bias = floats_of(biases[0]);
    }
    p.add = residual.defined() ? floats_of(residual) + (to - y.const_data_ptr<float>()) : nullptr;
    p.y = to;
    p.y_stride = p.add_stride = out;
    products.push_back(p);
    to += p.w->out;
  }
  const kernel::BlockCall call{x.const_data_ptr<float>(), rows, in, products.data(),
                               static_cast<int64_t>(products.size())};
  const heed_parallel parallel = op::torch_parallel();
  at::Tensor large;
  kernel::linear_blocks(call, scratch_of(kernel::linear_blocks_scratch(call, &parallel), large),
                        &parallel);
  return y;
}

at::Tensor block_rows(const BlockWeight& weight, const at::Tensor& ids_in) {
  const at::Tensor ids = ids_in.contiguous();
  std::vector<int64_t> sizes = ids.sizes().vec();
  sizes.push_back(weight.matrix.in);
  at::Tensor y = at::empty(sizes, at::kFloat);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  float* to = y.mutable_data_ptr<float>();
  const int64_t in = weight.matrix.in;
  at::parallel_for(0, ids.numel(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernel::unpack_rows(weight.matrix, id[i], id[i] + 1, to + i * in);
    }
  });
  return y;
}

}  // namespace heed
