// short_conv through op/dispatch, and Toeplitz products by FFT against the matrix.
#include "op/mix.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "io/error.h"
#include "op/toeplitz.h"

namespace heed::op {
namespace mix_test {

using at::Tensor;

double error(const Tensor& y, const Tensor& reference) {
  if (y.numel() == 0) return 0;
  const Tensor wide = reference.to(at::kDouble);
  const double norm = wide.norm().item<double>();
  return y.to(at::kDouble).sub(wide).norm().item<double>() / (norm > 0 ? norm : 1);
}

TEST(ShortConv, EqualsTheNaiveFormAndItsGradients) {
  at::manual_seed(2);
  for (const bool generated : {false, true}) {
    for (const int64_t ahead : {0, 2}) {
      const ShortConvOptions options = {ahead, 1};
      const auto make = [&](at::ScalarType type) {
        at::manual_seed(4);
        ShortConvTensors x;
        x.x = at::randn({2, 40, 12}).to(type).requires_grad_();
        x.weight =
            (generated ? at::randn({2, 40, 3, 5}) : at::randn({12, 5})).to(type).requires_grad_();
        x.bias = at::randn({12}).to(type).requires_grad_();
        if (ahead == 0) x.initial_state = at::randn({2, 4, 12}).to(type).requires_grad_();
        return x;
      };
      ShortConvTensors fast = short_conv(make(at::kFloat), options);
      ShortConvTensors wide = short_conv_naive(make(at::kDouble), options);
      EXPECT_LE(error(fast.out, wide.out), 2e-6);
      EXPECT_LE(error(fast.final_state, wide.final_state), 2e-6);
      at::manual_seed(5);
      const Tensor grad = at::randn(wide.out.sizes());
      const auto gradients = [&](const ShortConvTensors& y) {
        std::vector<Tensor> wanted = {y.x, y.weight, y.bias};
        if (ahead == 0) wanted.push_back(y.initial_state);
        return torch::autograd::grad({y.out}, wanted, {grad.to(y.out.scalar_type())});
      };
      const auto g = gradients(fast), g64 = gradients(wide);
      for (size_t i = 0; i < g.size(); ++i) EXPECT_LE(error(g[i], g64[i]), 1e-5) << i;
    }
  }
}

TEST(ShortConv, PacksAndSteps) {
  at::manual_seed(3);
  ShortConvTensors x;
  x.x = at::randn({1, 30, 6});
  x.weight = at::randn({6, 4});
  const Tensor offsets = at::tensor({0, 2, 2, 30}, at::kLong);
  const ShortConvTensors packed = short_conv(x, {}, offsets);
  EXPECT_LE(error(packed.out, short_conv_naive(x, {}, offsets).out), 2e-6);
  EXPECT_EQ(packed.final_state.sizes(), (std::vector<int64_t>{3, 3, 6}));
  ShortConvTensors step = x;
  step.initial_state = at::zeros({1, 3, 6});
  const ShortConvTensors whole = short_conv(x);
  for (int64_t t = 0; t < 30; ++t) {
    step.x = x.x.slice(1, t, t + 1);
    EXPECT_LE(error(short_conv_step(step), whole.out.slice(1, t, t + 1)), 2e-6) << t;
  }
  EXPECT_TRUE(step.initial_state.equal(whole.final_state));
}

TEST(Toeplitz, EqualsTheMatrix) {
  at::manual_seed(6);
  for (const auto& [queries, keys] :
       {std::pair(7, 7), std::pair(5, 9), std::pair(9, 4), std::pair(1, 1)}) {
    const Tensor c = at::randn({2, queries + keys - 1}, at::kDouble).requires_grad_();
    const Tensor x = at::randn({3, 2, keys, 4, 2}, at::kDouble).requires_grad_();
    const Tensor y = toeplitz(c, x, queries);
    std::vector<Tensor> rows;
    for (int64_t i = 0; i < queries; ++i) {  // key j meets c[j - i + T - 1]
      rows.push_back(c.slice(1, queries - 1 - i, queries - 1 - i + keys));
    }
    const Tensor expected = at::einsum("hts,bhsmd->bhtmd", {at::stack(rows, 1), x});
    EXPECT_LE(error(y, expected), 1e-12);
    const Tensor grad = at::randn_like(y);
    const auto g = torch::autograd::grad({y}, {c, x}, {grad});
    const auto reference = torch::autograd::grad({expected}, {c, x}, {grad});
    EXPECT_LE(error(g[0], reference[0]), 1e-12);
    EXPECT_LE(error(g[1], reference[1]), 1e-12);
  }
  EXPECT_THROW(toeplitz(at::zeros({2, 4}), at::zeros({1, 2, 3, 1}), 3), UsageError);
}

// Both ways to the weighted product, with gradients, for more queries than one run and for causal
// factors.
TEST(WeightedToeplitz, EqualsTheDenseWeightsAndTheirGradients) {
  struct Size {
    int64_t queries, keys;
    bool causal;
  };
  for (const Size& size : {Size{1, 1, false}, {5, 9, false}, {300, 140, false}, {300, 300, true}}) {
    at::manual_seed(6);
    const auto make = [](at::IntArrayRef sizes) {
      return at::rand(sizes, at::kDouble).requires_grad_();
    };
    const int64_t queries = size.queries, keys = size.keys;
    const Tensor f = make({2, 3, queries, 4}), g = make({2, 3, keys, 4}), x = make({2, 3, keys, 2});
    const Tensor all = make({3, queries + keys - 1});
    const Tensor seen = at::arange(queries + keys - 1).lt(keys).to(at::kDouble);
    const Tensor c = size.causal ? all.mul(seen) : all;
    std::vector<Tensor> rows;
    for (int64_t i = 0; i < queries; ++i) {
      rows.push_back(c.slice(1, queries - 1 - i, queries - 1 - i + keys));
    }
    const Tensor weights = at::matmul(f, g.transpose(2, 3)).mul(at::stack(rows, 1));
    const Tensor expected = at::matmul(weights, x), grad = at::randn_like(expected);
    const auto reference = torch::autograd::grad({expected}, {f, g, x, all}, {grad}, true);
    for (const bool fft : {false, true}) {
      const Tensor y =
          fft ? weighted_toeplitz_fft(f, g, x, c) : weighted_toeplitz(f, g, x, c, size.causal);
      EXPECT_LE(error(y, expected), 1e-12) << fft;
      const auto grads = torch::autograd::grad({y}, {f, g, x, all}, {grad}, true);
      for (size_t i = 0; i < grads.size(); ++i) {
        EXPECT_LE(error(grads[i], reference[i]), 1e-12) << fft << " gradient " << i;
      }
    }
  }
}

TEST(WeightedToeplitz, TransformsPayForLongTextsAndFewFeatures) {
  EXPECT_FALSE(fft_is_faster(4096, 4096, 64, 65, false));
  EXPECT_FALSE(fft_is_faster(16384, 16384, 64, 65, false));
  EXPECT_TRUE(fft_is_faster(131072, 131072, 64, 65, false));
  EXPECT_TRUE(fft_is_faster(16384, 16384, 16, 17, false));
}

}  // namespace mix_test
}  // namespace heed::op
