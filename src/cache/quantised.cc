// See quantised.h.
#include "cache/quantised.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "kernel/quant/quant.h"

namespace heed {
namespace {

constexpr int64_t kRowsATask = 64;

at::Tensor as_rows(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

at::IntArrayRef outer(const at::Tensor& x) { return x.sizes().slice(0, x.dim() - 1); }

std::vector<int64_t> sizes_with(at::IntArrayRef outer, int64_t last) {
  std::vector<int64_t> sizes = outer.vec();
  sizes.push_back(last);
  return sizes;
}

// The Hadamard matrix of a power of two over its root.
at::Tensor hadamard(int64_t n, const at::TensorOptions& options) {
  at::Tensor h = at::ones({1, 1}, options);
  for (int64_t size = 1; size < n; size *= 2) {
    h = at::cat({at::cat({h, h}, 1), at::cat({h, h.neg()}, 1)}, 0);
  }
  return h.div(std::sqrt(static_cast<double>(n)));
}

// Levels in order, and the thresholds between neighbours, of a table or of even steps.
at::Tensor table_of(int bits) {
  std::vector<float> levels;
  levels.reserve(255);
  if (bits == 8) {
    for (int i = -127; i <= 127; ++i) levels.push_back(static_cast<float>(i));
  } else if (bits == 6) {
    for (int i = 0; i < 64; ++i) levels.push_back(static_cast<float>(2 * i - 63));
  } else {
    for (int i = 0; i < 1 << bits; ++i) {
      levels.push_back(static_cast<float>(kernel::quant::levels(bits)[i]));
    }
  }
  return at::tensor(levels);
}

// What encode and decode do for one chunk of n numbers.
at::Tensor pack_chunk(at::Tensor code, int bits) {
  const int64_t n = code.size(-1);
  if (bits == 8) return code.to(at::kByte);
  std::vector<at::Tensor> planes;
  const auto part = [&](const at::Tensor& x, int64_t i, int64_t parts) {
    return x.narrow(-1, i * n / parts, n / parts);
  };
  if (bits >= 4) {
    const at::Tensor low = code.bitwise_and(15);
    planes.push_back(part(low, 0, 2).add(part(low, 1, 2).mul(16)));
    code = code.bitwise_right_shift(4);
  }
  if (bits == 2 || bits == 3 || bits == 6) {
    const at::Tensor low = code.bitwise_and(3);
    at::Tensor bytes = part(low, 0, 4);
    for (int f = 1; f < 4; ++f) bytes = bytes.add(part(low, f, 4).mul(1 << (2 * f)));
    planes.push_back(bytes);
    code = code.bitwise_right_shift(2);
  }
  if (bits == 3 || bits == 5) {
    const at::Tensor bit = code.bitwise_and(1).unflatten(-1, {n / 8, 8});
    const at::Tensor weight = at::tensor({1, 2, 4, 8, 16, 32, 64, 128}, code.options());
    planes.push_back(bit.mul(weight).sum(-1));
  }
  return at::cat(planes, -1).to(at::kByte);
}

at::Tensor unpack_chunk(const at::Tensor& bytes, int bits) {  // int64 in and out
  const int64_t n = bytes.size(-1) * 8 / bits;
  if (bits == 8) return bytes;
  at::Tensor code;
  int64_t at_byte = 0;
  int shift = 0;
  const auto add = [&](const at::Tensor& field) {
    const at::Tensor high = field.bitwise_left_shift(shift);
    code = code.defined() ? code.add(high) : high;
  };
  if (bits >= 4) {
    const at::Tensor b = bytes.narrow(-1, at_byte, n / 2);
    add(at::cat({b.bitwise_and(15), b.bitwise_right_shift(4)}, -1));
    at_byte += n / 2, shift = 4;
  }
  if (bits == 2 || bits == 3 || bits == 6) {
    const at::Tensor b = bytes.narrow(-1, at_byte, n / 4);
    std::vector<at::Tensor> fields;
    for (int f = 0; f < 4; ++f) fields.push_back(b.bitwise_right_shift(2 * f).bitwise_and(3));
    add(at::cat(fields, -1));
    at_byte += n / 4, shift += 2;
  }
  if (bits == 3 || bits == 5) {
    const at::Tensor b = bytes.narrow(-1, at_byte, n / 8).unsqueeze(-1);
    const at::Tensor shifts = at::arange(8, bytes.options());
    add(b.bitwise_right_shift(shifts).bitwise_and(1).flatten(-2));
  }
  return code;
}

template <class F>
at::Tensor by_chunks(const at::Tensor& x, int64_t width, F&& f) {
  std::vector<at::Tensor> parts;
  const int64_t whole = x.size(-1) / width * width;
  if (whole > 0) {
    parts.push_back(f(x.narrow(-1, 0, whole).unflatten(-1, {whole / width, width})).flatten(-2));
  }
  if (whole < x.size(-1)) parts.push_back(f(x.narrow(-1, whole, x.size(-1) - whole)));
  return at::cat(parts, -1);
}

}  // namespace

QuantisedRows encode_with_operators(const at::Tensor& x_in, int bits) {
  const at::Tensor x = x_in.to(at::kFloat);
  const at::Tensor table = table_of(bits).to(x.device());
  const at::Tensor middle = table.slice(0, 1).add(table.slice(0, 0, -1)).div(2);
  const at::Tensor most = std::get<0>(x.abs().max(-1, true));
  const at::Tensor gauss = x.div(most.clamp_min(1e-38))
                               .square()
                               .mean(-1, true)
                               .sqrt()
                               .mul(most)
                               .div(kernel::quant::levels_a_unit(bits));
  at::Tensor scale = bits == 8   ? most.div(127)
                     : bits == 6 ? at::minimum(most.div(63), gauss)
                                 : gauss;
  at::Tensor index;
  for (int i = 0; i < (bits == 8 ? 1 : 3); ++i) {
    index = at::bucketize(x.div(scale), middle);
    const at::Tensor level = table.index({index});
    const at::Tensor better = x.mul(level).sum(-1, true).div(level.square().sum(-1, true));
    scale = at::where(better.gt(0).logical_and(scale.gt(0)), better, scale);
  }
  scale = at::where(x.isfinite().all(-1, true).logical_and(scale.isfinite()), scale,
                    at::full_like(scale, NAN));
  const int64_t padded = (x.size(-1) + 7) / 8 * 8;
  at::Tensor code = bits == 8 ? index.sub(127).bitwise_and(255) : index;
  code = at::constant_pad_nd(code, {0, padded - x.size(-1)}, 0);
  return {by_chunks(code, kernel::kQuantChunk,
                    [&](const at::Tensor& c) { return pack_chunk(c, bits); }),
          scale.to(at::kBFloat16)};
}

at::Tensor decode_with_operators(const QuantisedRows& rows, int bits, int64_t dim) {
  at::Tensor code = by_chunks(rows.codes.to(at::kLong), int64_t{kernel::kQuantChunk} / 8 * bits,
                              [&](const at::Tensor& bytes) { return unpack_chunk(bytes, bits); });
  code = code.narrow(-1, 0, dim);
  const at::Tensor level = bits == 8 ? at::where(code.gt(127), code.sub(256), code).to(at::kFloat)
                                     : table_of(bits).to(code.device()).index({code});
  return level.mul(rows.scales.to(at::kFloat));
}

QuantisedRows encode(const at::Tensor& x, int bits) {
  if (!x.is_cpu()) return encode_with_operators(x, bits);
  const at::Tensor rows = as_rows(x);
  const int64_t dim = x.size(-1), count = dim > 0 ? rows.numel() / dim : 0;
  const int64_t bytes = kernel::row_bytes(bits, dim);
  QuantisedRows out{at::empty(sizes_with(outer(x), bytes), at::kByte),
                    at::empty(sizes_with(outer(x), 1), at::kBFloat16)};
  const auto* from = rows.const_data_ptr<float>();
  auto* codes = out.codes.mutable_data_ptr<uint8_t>();
  auto* scales = static_cast<uint16_t*>(out.scales.mutable_data_ptr());
  at::parallel_for(0, count, kRowsATask, [&](int64_t a, int64_t b) {
    kernel::encode_rows(bits, from + a * dim, dim, b - a, dim, nullptr, codes + a * bytes,
                        scales + a);
  });
  return out;
}

at::Tensor decode(const QuantisedRows& rows, int bits, int64_t dim) {
  if (!rows.codes.is_cpu()) return decode_with_operators(rows, bits, dim);
  const at::Tensor codes = rows.codes.contiguous(), scales = rows.scales.contiguous();
  at::Tensor out = at::empty(sizes_with(outer(codes), dim), at::kFloat);
  const auto* from = codes.const_data_ptr<uint8_t>();
  const auto* s = static_cast<const uint16_t*>(scales.const_data_ptr());
  auto* to = out.mutable_data_ptr<float>();
  const int64_t bytes = codes.size(-1);
  at::parallel_for(0, scales.numel(), kRowsATask, [&](int64_t a, int64_t b) {
    kernel::decode_rows(bits, from + a * bytes, bytes, s + a, b - a, dim, nullptr, to + a * dim,
                        dim);
  });
  return out;
}

at::Tensor rotated(const at::Tensor& x) {
  const int64_t dim = x.size(-1);
  if (!x.is_cpu()) {
    const int64_t block = dim & -dim;
    const at::Tensor wide = x.to(at::kFloat).unflatten(-1, {dim / block, block});
    return at::matmul(wide, hadamard(block, wide.options())).flatten(-2);
  }
  at::Tensor out = at::empty(x.sizes(), at::kFloat);
  out.copy_(x);
  auto* rows = out.mutable_data_ptr<float>();
  at::parallel_for(0, dim > 0 ? out.numel() / dim : 0, kRowsATask,
                   [&](int64_t a, int64_t b) { kernel::rotate(rows + a * dim, b - a, dim, dim); });
  return out;
}

}  // namespace heed
