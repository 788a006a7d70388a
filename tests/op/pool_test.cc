// torch.ops.heed.pool: the kernel against the naive form in float64, with gradients.
#include "op/pool.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "io/error.h"

namespace heed::op {
namespace pool_test {

using at::Tensor;

constexpr PoolOptions kOptions[] = {{},
                                    {1, 0, 1, 0, 0, 1e-6, 0, 0},
                                    {1, 0, 1, 0, 0, 200, 0, 1},
                                    {0.4, 1, 0, 1, -1, 0, 1, 0},
                                    {0.4, 1, 1, 0, -1, 1e-6, 1, 0}};

PoolTensors inputs(int64_t queries, int64_t keys, bool weights) {
  at::manual_seed(5);
  PoolTensors x;
  x.q = at::rand({2, queries, 4, 7}).add(0.1);
  x.k = at::rand({2, keys, 2, 7}).add(0.1);
  x.v = at::randn({2, keys, 2, 6});
  if (weights) {
    x.key_weight = at::rand({2, keys, 2});
    x.row_scale = at::randn({2, queries, 4});
  }
  return x;
}

double error(const Tensor& x, const Tensor& y) {
  return x.to(at::kDouble).sub(y).norm().item<double>() / y.norm().item<double>();
}

TEST(Pool, EqualsNaiveInFloat64WithGradients) {
  for (const PoolOptions& options : kOptions) {
    for (const bool weights : {false, true}) {
      const PoolTensors x = inputs(21, 33, weights);
      PoolTensors fast = x, slow = x;
      const auto leaf = [](Tensor& t, at::ScalarType type) {
        if (t.defined()) t = t.detach().to(type).requires_grad_();
      };
      Tensor PoolTensors::*const all[] = {&PoolTensors::q, &PoolTensors::k, &PoolTensors::v,
                                          &PoolTensors::key_weight, &PoolTensors::row_scale};
      for (const auto member : all) leaf(fast.*member, at::kFloat), leaf(slow.*member, at::kDouble);
      const Tensor y = pool(fast, options), reference = pool_naive(slow, options);
      EXPECT_LE(error(y, reference), options.b1 < 0 ? 4e-6 : 2e-6);
      const Tensor weight = at::randn_like(reference);
      y.mul(weight.to(at::kFloat)).sum().backward();
      reference.mul(weight).sum().backward();
      for (const auto member : all) {
        if ((fast.*member).defined()) {
          EXPECT_LE(error((fast.*member).grad(), (slow.*member).grad()), 1e-5);
        }
      }
    }
  }
}

TEST(Pool, PacksReadTheirOwnKeys) {
  PoolTensors x = inputs(33, 33, true);
  for (Tensor PoolTensors::*member : {&PoolTensors::q, &PoolTensors::k, &PoolTensors::v,
                                      &PoolTensors::key_weight, &PoolTensors::row_scale}) {
    x.*member = (x.*member).slice(0, 0, 1);
  }
  const Tensor offsets = at::tensor({0, 9, 9, 33}, at::kLong);
  const Tensor whole = pool(x, kOptions[3], offsets);
  PoolTensors part = x;
  part.q = x.q.slice(1, 9, 33), part.k = x.k.slice(1, 9, 33), part.v = x.v.slice(1, 9, 33);
  part.key_weight = x.key_weight.slice(1, 9, 33), part.row_scale = x.row_scale.slice(1, 9, 33);
  EXPECT_LE(error(whole.slice(1, 9, 33), pool(part, kOptions[3]).to(at::kDouble)), 1e-6);
  EXPECT_LE(error(whole, pool_naive(x, kOptions[3], offsets).to(at::kDouble)), 4e-6);
}

TEST(Pool, SaysWhatIsWrong) {
  PoolTensors x = inputs(5, 6, false);
  x.k = x.k.slice(1, 0, 4);
  EXPECT_THROW(pool(x, {}), UsageError);
}

}  // namespace pool_test
}  // namespace heed::op
