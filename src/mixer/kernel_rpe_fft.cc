// Kernelised attention with relative positions: random features times a learned factor of the
// distance, which is a Toeplitz matrix and runs by FFT. Luo et al., "Stable, Fast and Accurate:
// Kernelized Attention with Relative Positional Encoding", arXiv 2106.12566 (eqs. 5-8,
// section 3.3).
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "io/error.h"
#include "mixer/common/scan_core.h"
#include "op/toeplitz.h"

namespace heed::mixer {
namespace {

// Numbers of g v^T that are transformed at once: memory stays linear in T whatever m is.
constexpr int64_t kTileBytes = 32 << 20;

// x.w - |x|^2 / 2 of the normalised rows: the logarithms of the features, [B,H,T,m].
at::Tensor log_features(const at::Tensor& x, const at::Tensor& w, bool unit) {
  const at::Tensor length = at::sqrt(x.square().sum(-1, true));
  const double root = std::pow(static_cast<double>(x.size(-1)), 0.25);
  const at::Tensor y = unit ? x.div(length.clamp_min(1e-12)) : x.div(root);
  return at::matmul(y, w).sub(y.square().sum(-1, true).div(2)).transpose(1, 2);
}

at::Tensor naive(const at::Tensor& f, const at::Tensor& g, const at::Tensor& v,
                 const at::Tensor& c) {
  const int64_t queries = f.size(2), keys = g.size(2);
  const auto index = [&](int64_t n) { return at::arange(n, c.options().dtype(at::kLong)); };
  const at::Tensor lag = index(keys).unsqueeze(0).sub(index(queries).unsqueeze(1)).add(queries - 1);
  const at::Tensor factor = c.index_select(1, lag.flatten()).view({c.size(0), queries, keys});
  const at::Tensor weights = at::matmul(f, g.transpose(2, 3)).mul(factor);
  return at::matmul(weights, v).div(weights.sum(-1, true));
}

// A few features at a time: their products with the values and a column of ones, mixed by distance.
at::Tensor parallel(const at::Tensor& f, const at::Tensor& g, const at::Tensor& v,
                    const at::Tensor& c) {
  const int64_t queries = f.size(2), features = f.size(3), width = v.size(3) + 1;
  const at::Tensor values = at::cat({v, at::ones_like(v.slice(3, 0, 1))}, 3).unsqueeze(3);
  const int64_t row = v.size(0) * v.size(1) * (queries + v.size(2)) * width * 8;
  const int64_t tile = std::clamp<int64_t>(kTileBytes / std::max<int64_t>(row, 1), 1, features);
  at::Tensor sum;
  for (int64_t m = 0; m < features; m += tile) {
    const int64_t end = std::min(m + tile, features);
    const at::Tensor mixed = op::toeplitz(c, g.slice(3, m, end).unsqueeze(-1).mul(values), queries);
    const at::Tensor part = f.slice(3, m, end).unsqueeze(-1).mul(mixed).sum(3);
    sum = sum.defined() ? sum.add(part) : part;
  }
  return sum.slice(3, 0, width - 1).div(sum.slice(3, width - 1));
}

NamedTensors kernel_rpe_fft_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const int64_t queries = q.size(1), keys = k.size(1);
  const bool causal = call.settings.flag("causal");
  if (causal && keys != queries) {
    throw UsageError("kernel-rpe-fft: causal needs as many keys as queries, not {} and {}", keys,
                     queries);
  }
  // A transform rounds all sums as it rounds the largest, those of later tokens too: in float64 the
  // short sums of a causal call keep their digits, and nothing of later tokens shows.
  const bool wide = q.scalar_type() == at::kDouble || call.form == "parallel";
  const at::ScalarType type = wide ? at::kDouble : at::kFloat;
  const bool unit = call.settings.is("map", "nprf");
  const at::Tensor w = call.get("w").to(type);
  at::Tensor log_f = log_features(q.to(type), w, unit), log_g = log_features(k.to(type), w, unit);
  at::Tensor b = call.get("b").to(type);
  if (queries == 0 || keys == 0)
    return {{"out", at::zeros({q.size(0), queries, q.size(2), v.size(3)}, v.options())}};
  // A factor of a row of f, of all g of a head, and of all c of a head is in both sums of the
  // ratio: the largest exponent of each is taken off, so that nothing overflows. Causal: that of
  // the first key stands for those of g, for no output may know of later ones.
  const at::Tensor f = at::exp(log_f.sub(log_f.amax({3}, true).detach()));
  const at::Tensor seen = causal ? log_g.slice(2, 0, 1) : log_g;
  const at::Tensor g = at::exp(log_g.sub(seen.amax({2, 3}, true).detach()));
  if (causal) b = b.slice(1, 0, queries);
  at::Tensor c = at::exp(b.sub(b.amax({1}, true).detach()));
  if (causal) c = at::constant_pad_nd(c, {0, keys - 1});
  const at::Tensor values = v.to(type).transpose(1, 2);
  const at::Tensor out = call.form == "naive" ? naive(f, g, values, c) : parallel(f, g, values, c);
  return {{"out", out.transpose(1, 2).contiguous().to(v.scalar_type())}};
}

}  // namespace

void register_kernel_rpe_fft(Registry& registry) {
  Mechanism m;
  m.card.id = "kernel-rpe-fft";
  m.card.equations =
      "phi(x) = m^-1/2 exp(x.w_r - |x|^2/2),  C_ij = exp(b[j - i + T - 1])\n"
      "out_i = sum_j C_ij (phi(q_i).phi(k_j)) v_j / sum_j C_ij (phi(q_i).phi(k_j))";
  m.card.patterns = "noncausal self, noncausal cross, causal self";
  m.card.state_size = "T H (m+V)";
  m.card.apply.inputs = {token("q", "B,T,H,D"), token("k", "B,S,H,D"), token("v", "B,S,H,V"),
                         gate("b", "H,T+S-1"), gate("w", "D,m")};
  m.card.apply.settings = {word_setting("map", {"nprf", "prf"}), flag_setting("causal", false)};
  m.card.apply.outputs = {output("out", "B,T,H,V")};
  m.card.apply.forms = {"parallel", "naive"};
  m.card.tests.keys = "S";
  m.card.tests.lengths = {1, 2, 37, 131};  // b of no query and no key would have -1 entries
  m.core = kernel_rpe_fft_core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
