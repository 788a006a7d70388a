// The operator attend against its naive form in float64: options, block lists, windows per head,
// gradients, and through PyTorch's dispatcher.
#include "op/attend.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "io/error.h"

namespace heed::op {
namespace attend_test {

using at::Tensor;

double error(const Tensor& y, const Tensor& reference) {
  const Tensor finite = reference.isfinite();
  if (!y.isfinite().equal(finite)) return std::numeric_limits<double>::infinity();
  const Tensor a = y.to(at::kDouble).masked_select(finite),
               b = reference.to(at::kDouble).masked_select(finite);
  const double norm = b.norm().item<double>();
  return a.sub(b).norm().item<double>() / (norm > 0 ? norm : 1);
}

// The options that are differentiable tensors.
constexpr at::Tensor AttendOptions::*kExtras[] = {
    &AttendOptions::key_bias, &AttendOptions::q_bias, &AttendOptions::alibi_slopes,
    &AttendOptions::relative_bias, &AttendOptions::relative_scale};

// Compares outputs and gradients (of out and, where it has one, lse) of the operator with those of
// the naive form in float64.
void compare(const Tensor& q, const Tensor& k, const Tensor& v, const AttendOptions& options,
             at::ScalarType dtype, double forward, double backward) {
  const auto leaf = [](const Tensor& t) { return t.detach().clone().requires_grad_(); };
  const at::AutoGradMode grad_mode(true);
  std::vector<Tensor> x = {leaf(q.to(dtype)), leaf(k.to(dtype)), leaf(v.to(dtype))};
  AttendOptions fast = options, naive = options;
  std::vector<Tensor> y;
  for (const Tensor& t : x) y.push_back(leaf(t.to(at::kDouble)));
  for (at::Tensor AttendOptions::*extra : kExtras) {
    const Tensor& t = options.*extra;
    if (!t.defined()) continue;
    x.push_back(fast.*extra = leaf(t));
    y.push_back(naive.*extra = leaf(t.to(at::kDouble)));
  }
  const auto [out, lse] = attend(x[0], x[1], x[2], fast);
  EXPECT_EQ(out.scalar_type(), dtype);
  EXPECT_EQ(lse.scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
  const auto [out_ref, lse_ref] = attend_naive(y[0], y[1], y[2], naive);
  EXPECT_LE(error(out.detach(), out_ref.detach()), forward);
  EXPECT_LE(error(lse.detach(), lse_ref.detach()), forward);
  if (out.numel() == 0 || !out_ref.requires_grad()) return;
  const auto compare_gradients = [&](const std::vector<Tensor>& a, const std::vector<Tensor>& b,
                                     const char* of) {
    std::vector<Tensor> grads, wide;
    for (const Tensor& t : a) {
      grads.push_back(at::randn(t.sizes()).to(t.scalar_type()));
      wide.push_back(grads.back().to(at::kDouble));
    }
    const auto g = torch::autograd::grad(a, x, grads, true, false, true);
    const auto r = torch::autograd::grad(b, y, wide, true, false, true);
    for (size_t i = 0; i < x.size(); ++i) {
      if (!r[i].defined()) continue;
      ASSERT_TRUE(g[i].defined()) << "gradient " << i << " of " << of;
      EXPECT_EQ(g[i].scalar_type(), x[i].scalar_type());
      // A bias by query changes no softmax: its gradient is nothing but rounding, on both sides.
      const bool nothing =
          r[i].abs().sum().item<double>() < 1e-10 * static_cast<double>(r[i].numel());
      const double e =
          nothing ? g[i].to(at::kDouble).abs().max().item<double>() : error(g[i], r[i]);
      EXPECT_LE(e, backward) << "gradient " << i << " of " << of;
    }
  };
  compare_gradients({out}, {out_ref}, "out");
  if (!kernel::normalised(options.weight)) return;
  compare_gradients({lse}, {lse_ref}, "lse");
  compare_gradients({out, lse}, {out_ref, lse_ref}, "out and lse");
}

struct Case {
  const char* name;
  int64_t b, tq, tk, hq, hk, d, dv;
  AttendOptions options;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  AttendOptions plain;
  AttendOptions causal;
  causal.causal = true;
  all.push_back({"noncausal", 2, 33, 33, 4, 2, 16, 16, plain});
  all.push_back({"causal", 2, 100, 100, 6, 2, 64, 64, causal});
  all.push_back({"causal cross", 1, 17, 130, 2, 1, 24, 40, causal});
  all.push_back({"more queries than keys", 1, 40, 9, 2, 2, 8, 8, causal});
  all.push_back({"one query", 1, 1, 300, 9, 3, 64, 64, causal});
  all.push_back({"wide heads", 1, 20, 20, 2, 2, 256, 128, causal});
  AttendOptions window = causal;
  window.window = 11;
  window.sinks = 3;
  all.push_back({"sinks and window", 2, 90, 90, 4, 4, 32, 32, window});
  AttendOptions both = plain;
  both.window = 7;
  all.push_back({"window both ways", 1, 50, 60, 2, 1, 16, 16, both});
  AttendOptions cap = causal;
  cap.soft_cap = 1.5;
  cap.scale = 0.7;
  all.push_back({"soft cap and scale", 1, 40, 40, 2, 2, 16, 16, cap});
  AttendOptions bias = causal;
  bias.key_bias = at::randn({2, 45, 4});
  bias.key_bias.masked_fill_(at::rand({2, 45, 4}).gt(0.8),
                             -std::numeric_limits<double>::infinity());
  bias.alibi_slopes = at::rand({4});
  all.push_back({"key bias and slopes", 2, 45, 45, 4, 2, 16, 16, bias});
  AttendOptions sigmoid = bias;
  sigmoid.weight = kernel::Weight::kSigmoid;
  all.push_back({"sigmoid", 2, 45, 45, 4, 2, 16, 16, sigmoid});
  AttendOptions generic = bias;
  generic.weight = kernel::Weight::kGeneric, generic.bias = 0.3;
  all.push_back({"softplus", 2, 45, 45, 4, 2, 16, 16, generic});
  generic.function = 1, generic.power = 2, generic.bias = std::nullopt;
  all.push_back({"relu squared", 2, 45, 45, 4, 2, 16, 16, generic});
  AttendOptions filled = bias;
  filled.kv_lengths = at::tensor({31, 45}, at::kLong);
  all.push_back({"a cache partly filled", 2, 20, 45, 4, 2, 16, 16, filled});
  AttendOptions heads = causal;
  heads.head_window = at::tensor({0, 8, 20}, at::kLong);
  heads.head_sinks = at::tensor({0, 2, 4}, at::kLong);
  all.push_back({"a window for each KV head", 2, 70, 70, 6, 3, 16, 16, heads});
  AttendOptions pack = causal;
  pack.cu_seqlens_q = at::tensor({0, 7, 7, 30, 31, 64}, at::kLong);
  pack.cu_seqlens_k = at::tensor({0, 9, 12, 40, 40, 80}, at::kLong);
  all.push_back({"packs", 1, 64, 80, 4, 2, 16, 16, pack});
  AttendOptions lists = causal;
  lists.q_block = 16;
  lists.k_block = 8;
  lists.block_start = at::tensor({0, 1, 3, 5, 7, 1, 3, 5, 7, 7}, at::kLong).view({1, 2, 5});
  lists.block_index = at::tensor({0, 0, 2, 1, 4, 0, 6}, at::kInt);
  all.push_back({"block lists", 1, 60, 60, 4, 2, 16, 16, lists});
  AttendOptions heads_lists = causal;
  heads_lists.q_block = 30, heads_lists.k_block = 10;
  heads_lists.window = 6, heads_lists.sinks = 2, heads_lists.any = true;
  heads_lists.block_start =
      at::tensor({0, 1, 2, 2, 3, 5, 5, 6, 7, 7, 8, 8}, at::kLong).view({1, 4, 3});
  heads_lists.block_index = at::tensor({0, 1, 4, 0, 3, 5, 2, 1}, at::kInt);
  all.push_back({"lists of query heads or a window", 1, 60, 60, 4, 2, 16, 16, heads_lists});
  AttendOptions rows = causal;
  rows.q_bias = at::randn({2, 30, 4});
  rows.relative_bias = at::randn({4, 2 * 40 - 1});
  all.push_back({"query bias, bias by distance", 2, 30, 40, 4, 2, 16, 16, rows});
  AttendOptions urpe = plain;
  urpe.weight = kernel::Weight::kUrpe;
  urpe.relative_scale = at::randn({4, 2 * 50 - 1});
  all.push_back({"urpe", 2, 33, 45, 4, 2, 16, 16, urpe});
  AttendOptions grid = plain;
  grid.axes = {{6, 3, 1, false}, {9, 4, 2, false}};
  all.push_back({"grid", 2, 54, 54, 4, 2, 16, 16, grid});
  grid.axes = {{3, 2, 2, true}, {4, 3, 1, false}, {5, 2, 1, false}};
  all.push_back({"grid of three axes", 1, 60, 60, 2, 1, 8, 24, grid});
  all.push_back({"heads wider than 256", 1, 9, 9, 2, 1, 576, 512, causal});
  return all;
}

// Splits the keys in three, runs each part alone and merges: out, lse and every gradient are those
// of one call over all keys.
TEST(Merge, PartsOfTheKeysGiveTheWhole) {
  at::manual_seed(7);
  const at::AutoGradMode grad_mode(true);
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const auto leaf = [&](at::IntArrayRef sizes) {
      return at::randn(sizes, at::TensorOptions().dtype(dtype)).requires_grad_();
    };
    const std::vector<Tensor> x = {leaf({2, 9, 4, 8}), leaf({2, 31, 2, 8}), leaf({2, 31, 2, 6})};
    const auto run = [&](int64_t from, int64_t to) {
      const Tensor k = x[1].slice(1, from, to), v = x[2].slice(1, from, to);
      return dtype == at::kDouble ? attend_naive(x[0], k, v) : attend(x[0], k, v);
    };
    std::vector<Tensor> outs, lses;
    for (const auto& [from, to] :
         {std::pair{0, 12}, std::pair{12, 12}, std::pair{12, 13}, std::pair{13, 31}}) {
      const auto [out, lse] = run(from, to);
      outs.push_back(out), lses.push_back(lse);
    }
    const auto [out, lse] = merge(outs, lses);
    const auto [out_one, lse_one] = run(0, 31);
    const double bound = dtype == at::kDouble ? 1e-14 : 2e-6;
    EXPECT_LE(error(out.detach(), out_one.detach()), bound);
    EXPECT_LE(error(lse.detach(), lse_one.detach()), bound);
    const Tensor of_out = at::randn_like(out.detach()), of_lse = at::randn_like(lse.detach());
    const auto g = torch::autograd::grad({out, lse}, x, {of_out, of_lse});
    const auto r = torch::autograd::grad({out_one, lse_one}, x, {of_out, of_lse});
    for (size_t i = 0; i < x.size(); ++i) EXPECT_LE(error(g[i], r[i]), 5 * bound) << i;
  }
}

TEST(Merge, EmptyPartsCountForNothing) {
  const Tensor nan = at::full({1, 2, 1, 3}, NAN), one = at::randn({1, 2, 1, 3});
  const Tensor none = at::full({1, 2, 1}, -INFINITY), some = at::zeros({1, 2, 1});
  EXPECT_TRUE(std::get<0>(merge({nan, one}, {none, some})).equal(one));
  const auto [out, lse] = merge({nan, nan}, {none, none});
  EXPECT_TRUE(out.equal(at::zeros_like(one)));
  EXPECT_TRUE(lse.equal(none));
  EXPECT_THROW(merge({one}, {none, some}), UsageError);
  EXPECT_THROW(merge({one, one}, {some, some.squeeze(-1)}), UsageError);
}

TEST(Attend, IsTheNaiveFormInFloat32) {
  at::manual_seed(1);
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    compare(at::randn({c.b, c.tq, c.hq, c.d}), at::randn({c.b, c.tk, c.hk, c.d}),
            at::randn({c.b, c.tk, c.hk, c.dv}), c.options, at::kFloat, 2e-6, 1e-5);
  }
}

TEST(Attend, IsTheNaiveFormInFloat64) {
  at::manual_seed(1);
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    compare(at::randn({c.b, c.tq, c.hq, c.d}), at::randn({c.b, c.tk, c.hk, c.d}),
            at::randn({c.b, c.tk, c.hk, c.dv}), c.options, at::kDouble, 1e-6, 1e-6);
  }
}

TEST(Attend, IsTheNaiveFormInHalfPrecision) {
  at::manual_seed(2);
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const Tensor q = at::randn({c.b, c.tq, c.hq, c.d}), k = at::randn({c.b, c.tk, c.hk, c.d}),
                 v = at::randn({c.b, c.tk, c.hk, c.dv});
    compare(q, k, v, c.options, at::kBFloat16, 6e-3, 1.5e-2);
    compare(q, k, v, c.options, at::kHalf, 1e-3, 3e-3);
  }
}

TEST(Attend, TakesStridedTensors) {
  at::manual_seed(3);
  const Tensor qkv = at::randn({2, 30, 3, 4, 16});
  const Tensor q = qkv.select(2, 0), k = qkv.select(2, 1), v = qkv.select(2, 2);
  AttendOptions o;
  o.causal = true;
  EXPECT_TRUE(std::get<0>(attend(q, k, v, o))
                  .equal(std::get<0>(attend(q.contiguous(), k.contiguous(), v.contiguous(), o))));
  const Tensor flipped = q.transpose(1, 2).contiguous().transpose(1, 2);
  EXPECT_TRUE(std::get<0>(attend(flipped, k, v, o)).equal(std::get<0>(attend(q, k, v, o))));
  const Tensor spread = at::repeat_interleave(q, 2, -1).slice(-1, 0, std::nullopt, 2);
  EXPECT_TRUE(std::get<0>(attend(spread, k, v, o)).equal(std::get<0>(attend(q, k, v, o))));
}

TEST(Attend, IsDeterministic) {
  at::manual_seed(4);
  const Tensor q = at::randn({1, 257, 4, 32}), k = at::randn({1, 257, 2, 32}),
               v = at::randn({1, 257, 2, 32});
  AttendOptions o;
  o.causal = true;
  const Tensor first = std::get<0>(attend(q, k, v, o));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(std::get<0>(attend(q, k, v, o)).equal(first));
}

TEST(Attend, NamesWhatDoesNotFit) {
  const Tensor q = at::randn({1, 5, 4, 8}), k = at::randn({1, 6, 2, 8}),
               v = at::randn({1, 6, 2, 8});
  const auto message = [&](const Tensor& a, const Tensor& b, const Tensor& c,
                           const AttendOptions& o) {
    try {
      attend(a, b, c, o);
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_NE(message(q.squeeze(0), k, v, {}).find("q has shape"), std::string::npos);
  EXPECT_NE(message(q, k.slice(-1, 0, 7), v, {}).find("k has shape"), std::string::npos);
  EXPECT_NE(message(q.slice(2, 0, 3), k, v, {}).find("multiple"), std::string::npos);
  AttendOptions o;
  o.key_bias = at::zeros({1, 6, 3});
  EXPECT_NE(message(q, k, v, o).find("key_bias"), std::string::npos);
  o = {};
  o.cu_seqlens_q = at::tensor({0, 4}, at::kLong);
  EXPECT_NE(message(q, k, v, o)
                .find("cu_seqlens_q must start at 0 and end at Tq = 5, it goes from 0 to 4"),
            std::string::npos);
  o.cu_seqlens_q = at::tensor({0, 5, 3, 5}, at::kLong);
  EXPECT_NE(message(q, k, v, o).find("cu_seqlens_q decreases at entry 2"), std::string::npos);
  o = {};
  o.relative_scale = at::zeros({4, 3});
  EXPECT_NE(message(q, k, v, o).find("urpe"), std::string::npos);
  o.weight = kernel::Weight::kUrpe;
  EXPECT_NE(message(q, k, v, o).find("reaches 1"), std::string::npos);
  o = {};
  o.axes = {{6, 7, 1, false}};
  EXPECT_NE(message(q, k, v, o).find("window 7"), std::string::npos);
  o.axes = {{5, 2, 1, false}};
  EXPECT_NE(message(q, k, v, o).find("5 cells"), std::string::npos);
  o = {};
  o.window = -1;
  EXPECT_NE(message(q, k, v, o).find("window"), std::string::npos);
}

TEST(Attend, NaiveFormGoesByBlocksWithoutChangingItsResult) {
  at::manual_seed(5);
  // 64 heads x 3000 keys x 4 bytes a row: several blocks of 128 MB.
  const Tensor q = at::randn({1, 400, 64, 4}), k = at::randn({1, 3000, 64, 4}),
               v = at::randn({1, 3000, 64, 4});
  AttendOptions o;
  o.causal = true;
  const Tensor whole = std::get<0>(attend_naive(q, k, v, o));
  const Tensor last = std::get<0>(attend_naive(q.slice(1, 390), k, v, o));
  EXPECT_LE(error(whole.slice(1, 390), last), 1e-6);
  EXPECT_LE(error(std::get<0>(attend(q, k, v, o)), whole), 4e-6);
}

}  // namespace attend_test
}  // namespace heed::op
