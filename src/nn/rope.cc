// See rope.h.
#include "nn/rope.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace heed {
namespace {

// base^(0/D, 2/D, ...) as float32 powers.
at::Tensor powers(double base, int64_t dim) {
  return at::pow(at::Scalar(base),
                 at::arange(0, dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(dim));
}

// arXiv 2309.00071, section 3.2: interpolate slow dimensions, keep fast ones, a linear ramp
// between.
RopeFrequencies yarn(const RopeConfig& rope, int64_t dim, int64_t original) {
  const auto dimension_of = [&](double rotations) {
    return static_cast<double>(dim) *
           std::log(static_cast<double>(original) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(rope.base));
  };
  double low = dimension_of(rope.beta_fast), high = dimension_of(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  const at::Tensor positions = powers(rope.base, dim);
  const at::Tensor kept = 1 - ((at::arange(dim / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  RopeFrequencies out;
  out.inverse = 1.0 / (rope.factor * positions) * (1 - kept) + 1.0 / positions * kept;
  const auto mscale = [&](double m) {
    return rope.factor <= 1 ? 1.0 : 0.1 * m * std::log(rope.factor) + 1.0;
  };
  if (rope.attention_factor != 0) {
    out.scale = rope.attention_factor;
  } else if (rope.mscale != 0 && rope.mscale_all_dim != 0) {
    out.scale = mscale(rope.mscale) / mscale(rope.mscale_all_dim);
  } else {
    out.scale = mscale(1);
  }
  return out;
}

// Llama 3.1's rule: wavelengths beyond the original context / low_freq_factor are interpolated,
// those below context / high_freq_factor kept, between them a linear blend.
at::Tensor llama3(const RopeConfig& rope, int64_t dim, int64_t original) {
  const at::Tensor inverse = 1.0 / powers(rope.base, dim);
  const double context = static_cast<double>(original);
  const at::Tensor wavelength = 2 * std::numbers::pi / inverse;
  const at::Tensor scaled =
      at::where(wavelength > context / rope.low_freq_factor, inverse / rope.factor, inverse);
  const at::Tensor blend = (context / wavelength - rope.low_freq_factor) /
                           (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor smoothed = (1 - blend) * scaled / rope.factor + blend * scaled;
  const at::Tensor medium = (wavelength >= context / rope.high_freq_factor)
                                .logical_and(wavelength <= context / rope.low_freq_factor);
  return at::where(medium, smoothed, scaled);
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeConfig& rope, int64_t head_dim, int64_t max_position,
                                 int64_t context) {
  const int64_t dim = rope.dims > 0 ? rope.dims : head_dim;
  const int64_t original =
      rope.original_max_position > 0 ? rope.original_max_position : max_position;
  if (rope.type == "linear") return {1.0 / powers(rope.base, dim) / rope.factor, 1};
  if (rope.type == "dynamic") {
    const double longest = static_cast<double>(std::max(context, max_position));
    const double d = static_cast<double>(dim);
    const double stretch =
        rope.factor * longest / static_cast<double>(max_position) - (rope.factor - 1);
    return {1.0 / powers(rope.base * std::pow(stretch, d / (d - 2)), dim), 1};
  }
  if (rope.type == "yarn") return yarn(rope, dim, original);
  if (rope.type == "llama3") return {llama3(rope, dim, original), 1};
  if (rope.type == "longrope") {
    const auto& factors = context > original ? rope.long_factor : rope.short_factor;
    RopeFrequencies out;
    out.inverse = 1.0 / (at::tensor(factors, at::kDouble).to(at::kFloat) * powers(rope.base, dim));
    if (rope.attention_factor != 0) {
      out.scale = rope.attention_factor;
    } else if (rope.factor > 1) {
      out.scale = std::sqrt(1 + std::log(rope.factor) / std::log(static_cast<double>(original)));
    }
    return out;
  }
  return {1.0 / powers(rope.base, dim), 1};
}

RopeTables rope_tables(const RopeFrequencies& frequencies, int64_t positions,
                       const at::Device& device) {
  const at::Tensor angles =
      at::outer(at::arange(positions, at::kLong).to(at::kFloat), frequencies.inverse);
  return {(angles.cos() * frequencies.scale).to(device),
          (angles.sin() * frequencies.scale).to(device)};
}

RopeTables rope_at(const at::Tensor& positions, int64_t dim, double theta) {
  const int64_t half = dim / 2;
  const auto options = at::TensorOptions().dtype(at::kFloat).device(positions.device());
  const at::Tensor frequency =
      at::exp(at::arange(half, options).mul(-std::log(theta) / static_cast<double>(half)));
  const at::Tensor angle = positions.to(at::kFloat).unsqueeze(-1).mul(frequency);
  return {at::cos(angle), at::sin(angle)};
}

const RopeTables& Rope::tables(int64_t positions, const at::Device& device) const {
  const bool here = tables_.cos.defined() && tables_.cos.device() == device;
  const int64_t have = here ? tables_.cos.size(0) : 0;
  if (!here || have < positions) {
    const int64_t size = std::max(positions, std::min(context_, std::max<int64_t>(2 * have, 1024)));
    tables_ = rope_tables(frequencies_, size, device);
  }
  return tables_;
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t turned = 2 * cos.size(-1);
  const auto halves = x.narrow(-1, 0, turned).to(wide).chunk(2, -1);
  const at::Tensor c = cos.to(wide).unsqueeze(-2), s = sin.to(wide).unsqueeze(-2);
  const at::Tensor out = at::cat({halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s}, -1)
                             .to(x.scalar_type());
  if (turned == x.size(-1)) return out;
  return at::cat({out, x.narrow(-1, turned, x.size(-1) - turned)}, -1);
}

}  // namespace heed
