// Interleaving, unpacking and the products of blocks.h by plain loops.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernel/linear/blocks_layout.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel {
namespace {

float half_at(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return float16_to_float(bits);
}

// One row's block of a file into its places in a group's block.
void pack_block(const PackedFormat& format, const std::byte* from, int64_t row, std::byte* to) {
  std::memcpy(to + 2 * row, from, 2);
  if (format.minima) std::memcpy(to + 32 + 2 * row, from + 2, 2);
  const auto* q = reinterpret_cast<const uint8_t*>(from + (format.minima ? 4 : 2));
  auto* data = reinterpret_cast<uint8_t*>(to + format.data);
  for (int64_t k = 0; k < kBlock; ++k) {
    if (format.eight_bits) {
      data[k / 4 * 64 + 4 * row + k % 4] = static_cast<uint8_t>(q[k] ^ 0x80);
      continue;
    }
    // ggml: the low halves of the bytes are numbers 0 to 15, the high ones 16 to 31.
    const int number = k < 16 ? q[k] & 15 : q[k - 16] >> 4;
    uint8_t& byte = data[k / 8 * 64 + 4 * row + k % 4];
    byte = static_cast<uint8_t>(k % 8 < 4 ? number : byte | number << 4);
  }
}

void unpack_packed_row(const BlockMatrix& w, int64_t r, float* to) {
  const PackedFormat format = packed_format(w.type);
  const int64_t blocks = w.in / kBlock, row = r % kPackedRows;
  const std::byte* at = w.data + r / kPackedRows * blocks * format.bytes;
  for (int64_t b = 0; b < blocks; ++b, at += format.bytes) {
    const float d = half_at(at + 2 * row), m = format.minima ? half_at(at + 32 + 2 * row) : 0;
    for (int64_t k = 0; k < kBlock; ++k) {
      const auto number = static_cast<float>(packed_number(format, at, row, k) - format.offset);
      to[b * kBlock + k] = format.minima ? d * number + m : d * number;
    }
  }
}

double packed_dot(const BlockMatrix& w, int64_t n, const RoundedRows& x, int64_t m) {
  const PackedFormat format = packed_format(w.type);
  const int64_t blocks = w.in / kBlock, row = n % kPackedRows;
  const std::byte* at = w.data + n / kPackedRows * blocks * format.bytes;
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b, at += format.bytes) {
    const int64_t first = m * w.in + b * kBlock;
    int32_t sum = 0;
    for (int64_t k = 0; k < kBlock; ++k) {
      const int32_t number = x.fine ? kRadix * x.q[first + k] + x.low[first + k] : x.q[first + k];
      sum += number * (packed_number(format, at, row, k) - format.offset);
    }
    const int64_t place = m * blocks + b;
    total += static_cast<double>(half_at(at + 2 * row)) * x.scales[place] * sum;
    if (format.minima) total += static_cast<double>(half_at(at + 32 + 2 * row)) * x.sums[place];
  }
  return total;
}

// x[m] w[n] + bias[n]; `row` holds row n of w where it is not interleaved.
double one_product(const BlockCall& call, const BlockMatrix& w, const float* bias,
                   const RoundedRows& x, int64_t m, int64_t n, const float* row) {
  double sum = bias ? bias[n] : 0;
  if (is_packed(w.type)) return sum + packed_dot(w, n, x, m);
  for (int64_t k = 0; k < call.in; ++k) {
    sum += static_cast<double>(call.x[m * call.in + k]) * row[k];
  }
  return sum;
}

}  // namespace

int64_t stored_row_bytes(BlockType type, int64_t in) {
  return in / kBlock * packed_format(type).file_bytes;
}

int64_t packed_bytes(BlockType type, int64_t out, int64_t in) {
  return (out + kPackedRows - 1) / kPackedRows * (in / kBlock) * packed_format(type).bytes;
}

void pack_rows(BlockType type, const std::byte* rows, const int64_t* order, int64_t out, int64_t in,
               int64_t begin, int64_t end, std::byte* to) {
  const PackedFormat format = packed_format(type);
  const int64_t blocks = in / kBlock, row_bytes = stored_row_bytes(type, in);
  for (int64_t group = begin; group < end; ++group) {
    std::byte* at = to + group * blocks * format.bytes;
    std::memset(at, 0, static_cast<size_t>(blocks * format.bytes));
    const int64_t first = group * kPackedRows, count = std::min(kPackedRows, out - first);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t source = order ? order[first + row] : first + row;
      const std::byte* from = rows + source * row_bytes;
      for (int64_t b = 0; b < blocks; ++b) {
        pack_block(format, from + b * format.file_bytes, row, at + b * format.bytes);
      }
    }
  }
}

void unpack_rows(const BlockMatrix& w, int64_t begin, int64_t end, float* to) {
  for (int64_t r = begin; r < end; ++r, to += w.in) {
    const std::byte* from = w.data + r * w.row_bytes;
    switch (w.type) {
      case BlockType::kFloat32:
        std::memcpy(to, from, static_cast<size_t>(w.in) * sizeof(float));
        break;
      case BlockType::kFloat16:
        for (int64_t k = 0; k < w.in; ++k) to[k] = half_at(from + 2 * k);
        break;
      case BlockType::kBfloat16:
        for (int64_t k = 0; k < w.in; ++k) {
          uint16_t bits;
          std::memcpy(&bits, from + 2 * k, sizeof bits);
          to[k] = bfloat16_to_float(bits);
        }
        break;
      case BlockType::kOther:
        w.unpack(w.format, from, w.in, to);
        break;
      default:
        unpack_packed_row(w, r, to);
    }
  }
}

int64_t rounded_bytes(const BlockCall& call) {
  const int64_t numbers = (call.rows * call.in + 63) / 64 * 64;
  return (call.fine ? 2 : 1) * numbers + 3 * call.rows * (call.in / kBlock) * 4;
}

RoundedRows rounded_rows(std::byte* scratch, const BlockCall& call) {
  const int64_t numbers = (call.rows * call.in + 63) / 64 * 64;
  const int64_t blocks = call.rows * (call.in / kBlock);
  auto* q = reinterpret_cast<int8_t*>(scratch);
  auto* scales = reinterpret_cast<float*>(scratch + (call.fine ? 2 : 1) * numbers);
  return {call.fine,       q,
          q + numbers,     scales,
          scales + blocks, reinterpret_cast<int32_t*>(scales + 2 * blocks)};
}

void round_row_reference(const float* x, int64_t in, int64_t m, const RoundedRows& to) {
  for (int64_t b = 0; b < in / kBlock; ++b) {
    const float* from = x + b * kBlock;
    const int64_t first = m * in + b * kBlock;
    float most = 0;
    bool finite = true;
    for (int64_t k = 0; k < kBlock; ++k) {
      finite = finite && std::isfinite(from[k]);
      most = std::max(most, std::abs(from[k]));
    }
    // Below 1e-30 the inverse of a scale would overflow.
    const float inverse = finite && most > 1e-30f ? to.most() / most : 0;
    int32_t count = 0;
    for (int64_t k = 0; k < kBlock; ++k) {
      const float number = inverse == 0 ? 0 : std::nearbyint(from[k] * inverse);
      const float high = to.fine ? std::nearbyint(number * (1.0f / kRadix)) : number;
      to.q[first + k] = static_cast<int8_t>(high);
      if (to.fine) to.low[first + k] = static_cast<int8_t>(number - kRadix * high);
      count += static_cast<int32_t>(number);
    }
    const int64_t place = m * (in / kBlock) + b;
    const float scale = finite ? most / to.most() : std::numeric_limits<float>::quiet_NaN();
    to.scales[place] = scale;
    to.sums[place] = scale * static_cast<float>(count);
    to.counts[place] = count;
  }
}

void linear_blocks_reference(const BlockCall& call, std::byte* scratch) {
  RoundedRows rounded{};
  bool any = false;
  for (int64_t i = 0; i < call.count; ++i) any = any || is_packed(call.products[i].w->type);
  if (any) {
    rounded = rounded_rows(scratch, call);
    for (int64_t m = 0; m < call.rows; ++m) {
      round_row_reference(call.x + m * call.in, call.in, m, rounded);
    }
  }
  auto* row = reinterpret_cast<float*>(scratch + (any ? rounded_bytes(call) : 0));
  float* gate_row = row + call.in;
  for (int64_t i = 0; i < call.count; ++i) {
    const BlockProduct& p = call.products[i];
    for (int64_t n = 0; n < p.w->out; ++n) {
      if (!is_packed(p.w->type)) unpack_rows(*p.w, n, n + 1, row);
      if (p.gate && !is_packed(p.gate->type)) unpack_rows(*p.gate, n, n + 1, gate_row);
      for (int64_t m = 0; m < call.rows; ++m) {
        double y = one_product(call, *p.w, p.bias, rounded, m, n, row);
        if (p.gate) {
          const double g = one_product(call, *p.gate, p.gate_bias, rounded, m, n, gate_row);
          y *= g / (1 + std::exp(-g));
        }
        if (p.add) y += p.add[m * p.add_stride + n];
        p.y[m * p.y_stride + n] = static_cast<float>(y);
      }
    }
  }
}

}  // namespace heed::kernel
