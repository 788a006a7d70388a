// InLine attention: what its weights must be.
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace inline_attention_test {

using at::Tensor;
using testing::relative_error;

Tensor out(const NamedTensors& in, const std::string& form, const SettingList& settings = {}) {
  return testing::run(find_mechanism("inline-attention"), in, form, settings).at("out");
}

NamedTensors inputs(int64_t queries = 21, int64_t keys = 33) {
  at::manual_seed(13);
  return {{"q", at::randn({2, queries, 3, 5})},
          {"k", at::randn({2, keys, 3, 5})},
          {"v", at::randn({2, keys, 3, 4})}};
}

TEST(InlineAttention, RowsSumToOne) {
  NamedTensors in = inputs();
  in["v"] = at::randn({4}).expand({2, 33, 3, 4}).contiguous();  // identical values stay
  const Tensor expected = in["v"].slice(1, 0, 21);
  for (const char* phi : {"identity", "relu", "leaky_relu", "exp"}) {
    for (const char* form : {"naive", "parallel"}) {
      EXPECT_LE(relative_error(out(in, form, {{"phi", phi}}), expected), 2e-6) << phi << form;
    }
  }
}

TEST(InlineAttention, EqualsItsMatrix) {
  const NamedTensors in = inputs();
  const auto rows = [&](const char* name) { return in.at(name).to(at::kDouble).transpose(1, 2); };
  const Tensor a = rows("q").matmul(rows("k").transpose(-1, -2)).div(33 * std::sqrt(5.0));
  const Tensor weights = a.sub(a.mean(-1, true)).add(1.0 / 33);
  EXPECT_LT(weights.min().item<double>(), 0);  // entries may be negative
  const Tensor expected = weights.matmul(rows("v")).transpose(1, 2);
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(out(in, form), expected), 4e-6) << form;
  }
}

// Two queries give the same row exactly if their difference is orthogonal to all centred keys.
TEST(InlineAttention, QueriesCollideOnlyAcrossTheKeys) {
  NamedTensors in = inputs(2, 3);  // three keys: two directions, of five
  const Tensor k = in["k"].transpose(1, 2).to(at::kDouble);
  const Tensor centred = k.sub(k.mean(-2, true));
  // One step of orthogonal projection: d - C^+ C d.
  const Tensor d = at::randn({2, 3, 5, 1}, at::kDouble);
  const Tensor gram = centred.matmul(centred.transpose(-1, -2)).add(at::eye(3).mul(1e-12));
  const Tensor normal = d.sub(
      centred.transpose(-1, -2).matmul(at::linalg_pinv(gram, 1e-6).matmul(centred.matmul(d))));
  const Tensor first = in["q"].select(1, 0);
  in["q"] = at::stack({first, first.add(normal.squeeze(-1).to(at::kFloat))}, 1);
  Tensor y = out(in, "parallel");
  EXPECT_LE(relative_error(y.select(1, 1), y.select(1, 0)), 1e-5);
  in["q"] = at::stack({first, first.add(centred.select(-2, 0).to(at::kFloat))}, 1);
  y = out(in, "parallel");
  EXPECT_GE(relative_error(y.select(1, 1), y.select(1, 0)), 1e-2);
}

// Rows of normalised linear attention do not know the length of a query; these do.
TEST(InlineAttention, LongerQueriesHaveOtherRows) {
  NamedTensors in = inputs();
  const SettingList relu = {{"phi", "relu"}};
  const Tensor y = out(in, "parallel", relu);
  const Tensor f = at::relu(in["q"]).transpose(1, 2), g = at::relu(in["k"]).transpose(1, 2);
  const auto normalised = [&](double by) {
    const Tensor a = f.mul(by).matmul(g.transpose(-1, -2));
    return a.div(a.sum(-1, true).add(1e-12));
  };
  EXPECT_LE(relative_error(normalised(3), normalised(1)), 1e-5);
  in["q"] = in["q"].mul(3);
  EXPECT_GE(relative_error(out(in, "parallel", relu), y), 1e-2);
}

TEST(InlineAttention, TheResidualIsAConvolutionOfTheValues) {
  NamedTensors in = inputs(37, 37);
  const SettingList grid = {{"grid", "5x7"}, {"cls", "2"}};
  const Tensor plain = out(in, "parallel", grid);
  in["kernel"] = at::zeros({2, 12, 3, 3});
  EXPECT_LE(relative_error(out(in, "parallel", grid), plain), 1e-7);
  in["kernel"].select(-1, 2).select(-1, 1).fill_(1);  // the right neighbour
  const Tensor added = out(in, "naive", grid).sub(plain);
  const Tensor image = in["v"].slice(1, 2).reshape({2, 5, 7, 3, 4});
  const Tensor right = at::cat({image.slice(2, 1), at::zeros({2, 5, 1, 3, 4})}, 2);
  const Tensor expected = at::cat({at::zeros({2, 2, 3, 4}), right.reshape({2, 35, 3, 4})}, 1);
  EXPECT_LE(relative_error(added, expected), 1e-5);
}

// Without W2 and its bias there is no residual: the layer is the one without `local`.
TEST(InlineAttention, ResidualOfNothingIsNoResidual) {
  at::manual_seed(29);
  LayerConfig config;
  config.hidden = 12;
  config.heads = 3;
  const auto plain = make_layer("inline-attention", config);
  config.options = {{"local", true}};
  const auto local = make_layer("inline-attention", config);
  for (auto& [name, t] : plain->parameters()) {
    t.add_(at::randn(t.sizes()).mul(0.2));
    local->parameters().at(name).copy_(t);
  }
  const Tensor x = at::randn({2, 35, 12});
  Call call;
  call.pattern = Pattern::kNoncausalSelf;
  call.grid = {2, {5, 7, 0}};
  const Tensor expected = plain->forward(x, call);
  EXPECT_GE(relative_error(local->forward(x, call), expected), 1e-3);
  local->parameters().at("residual.2.weight").zero_();
  EXPECT_LE(relative_error(local->forward(x, call), expected), 1e-6);
  call.grid = {2, {5, 5, 0}};
  EXPECT_THROW(local->forward(x, call), UsageError);
  call.pattern = Pattern::kCausalSelf;
  EXPECT_THROW(local->forward(x, call), UsageError);
}

}  // namespace inline_attention_test
}  // namespace heed::mixer
