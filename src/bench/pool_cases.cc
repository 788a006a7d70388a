// Benchmarks of the engine `pool`: the plain read beside the two matrix products that it consists
// of (at::matmul in PyTorch's own layout), the normalised and the centred one beside these and the
// element-wise operations of their epilogue.
#include <ATen/ATen.h>

#include "bench/call_cases.h"
#include "op/pool.h"

namespace heed::bench {
namespace {

using at::Tensor;

struct Read {
  const char* name;
  op::PoolOptions options;
};

// q, k, v as [B,H,T,D].
Tensor products(const std::vector<Tensor>& x, const op::PoolOptions& o) {
  const Tensor read = at::matmul(x[0], at::matmul(x[1].transpose(-1, -2), x[2]));
  if (o.a1 == 0 && o.b1 == 0) return read;
  const auto keys = static_cast<double>(x[1].size(2));
  const double scale = o.by_count ? o.scale / keys : o.scale;
  const Tensor sum = at::matmul(x[0], x[1].sum(2, true).transpose(-1, -2)).mul(scale);
  Tensor factor = at::full_like(sum, o.a0);
  if (o.a1 != 0) factor = factor.add(sum.add(o.eps).reciprocal(), o.a1);
  const Tensor out = read.mul(scale).mul(factor);
  if (o.b0 == 0 && o.b1 == 0) return out;
  return out.add(sum.mul(o.b1).add(o.b0).mul(x[2].mean(2, true)));
}

CallKind read_kind(const Read& r, int64_t tokens, int64_t heads, int64_t width) {
  CallKind k;
  k.engine = "pool";
  k.name = r.name;
  k.peer = r.options.a1 == 0 && r.options.b1 == 0 ? "pytorch-two-matmuls" : "pytorch-operators";
  k.heads_first = true;
  k.sizes = {{"T", tokens}, {"M", width}, {"V", width}, {"H", heads}};
  k.flops = 4 * tokens * heads * width * width;
  k.out = tokens * heads * width;
  k.inputs = [=] {
    const auto features = [&] { return at::randn({1, tokens, heads, width}).relu_().add_(0.01); };
    return std::vector<Tensor>{features(), features(), at::randn({1, tokens, heads, width})};
  };
  k.ours = [=](const auto& x) { return op::pool({x[0], x[1], x[2]}, r.options); };
  k.peers = [=](const auto& x) { return products(x, r.options); };
  return k;
}

}  // namespace

std::vector<Case> pool_cases(bool quick) {
  op::PoolOptions normalised, centred;
  normalised.a0 = 0, normalised.a1 = 1, normalised.eps = 1e-6;
  centred.b0 = 1, centred.b1 = -1, centred.by_count = 1;
  const Read reads[] = {{"plain", {}}, {"normalised", normalised}, {"centred", centred}};
  std::vector<Case> cases;
  for (const bool backward : {false, true}) {
    for (const Read& r : reads) {
      for (const int64_t width : {64, 128}) {
        CallKind k = read_kind(r, quick ? 256 : 4096, 8, width);
        k.backward = backward;
        cases.push_back(call_case(k));
      }
    }
  }
  return cases;
}

}  // namespace heed::bench
