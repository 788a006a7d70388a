// Rotary position embedding: frequencies, tables and the rotation. Half-split pairs: of the first R
// dimensions of a head, dimension i turns with dimension i + R/2 by the angle p f_i; the others
// stay (RoFormer, arXiv 2104.09864; GPT-NeoX's order of dimensions). R is RopeConfig::dims, mostly
// D.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "io/model_config.h"

namespace heed {

struct RopeFrequencies {
  at::Tensor inverse;  // float32 [R/2]: angle per position
  double scale = 1;    // factor on cos and sin (yarn, longrope)
};

// Frequencies in float32 by the same operations as transformers' modeling_rope_utils, since an
// error of one unit in the last place turns into an angle at far positions. `context` is the length
// in tokens that dynamic NTK and longrope choose their frequencies for; these stay fixed, so that
// cached keys stay valid.
RopeFrequencies rope_frequencies(const RopeConfig& rope, int64_t head_dim, int64_t max_position,
                                 int64_t context);

// cos and sin of positions 0 .. positions-1, float32 [positions, R/2], times the scale.
struct RopeTables {
  at::Tensor cos, sin;
};
RopeTables rope_tables(const RopeFrequencies& frequencies, int64_t positions,
                       const at::Device& device);

// The same of positions [B, T] times theta^(-2d/D), float32 [B, T, D/2]: for layers with a rotation
// of their own.
RopeTables rope_at(const at::Tensor& positions, int64_t dim, double theta);

// The rotation that several layers share, with its table of positions 0, 1, ...
class Rope {
 public:
  // `context`: what the model was made for, in tokens; the table rarely needs to be longer.
  Rope(RopeFrequencies frequencies, int64_t context)
      : frequencies_(std::move(frequencies)), context_(context) {}
  // At least `positions` rows, on the device. Made when first asked for; not for two threads.
  const RopeTables& tables(int64_t positions, const at::Device& device) const;

 private:
  RopeFrequencies frequencies_;
  int64_t context_;
  mutable RopeTables tables_;
};

// Turns the first R dimensions of x [..., N, H, D] by cos, sin [..., N, R/2] (rows already picked
// by position); computes in float32 or wider, returns x's dtype; differentiable.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace heed
