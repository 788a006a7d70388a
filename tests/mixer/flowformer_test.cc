// Flow-Attention: conservation, equal keys, the order of tokens, and the causal sums one by one.
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace flowformer_test {

using at::Tensor;
using testing::relative_error;

NamedTensors flow(const NamedTensors& in, const std::string& form,
                  const SettingList& settings = {}) {
  return testing::run(find_mechanism("flowformer"), in, form, settings);
}

NamedTensors inputs(int64_t queries = 21, int64_t keys = 33) {
  at::manual_seed(17);
  return {{"q", at::randn({2, queries, 3, 5})},
          {"k", at::randn({2, keys, 3, 5})},
          {"v", at::rand({2, keys, 3, 4}).add(0.5)}};
}

// Equal keys do not compete: out_i = sigmoid(Ih_i T/S) mean(v). From it the incoming flow can be
// told, and it adds up to the number of keys.
TEST(Flowformer, EqualKeysShareAndFlowIsConserved) {
  NamedTensors in = inputs();
  in["k"] = in["k"].slice(1, 0, 1).expand({2, 33, 3, 5}).contiguous();
  const Tensor mean = in["v"].to(at::kDouble).mean(1, true);
  for (const char* form : {"naive", "parallel"}) {
    const Tensor y = flow(in, form, {{"eps", "0"}, {"clamp", "1e9"}}).at("out");
    const Tensor share = y.to(at::kDouble).div(mean);
    EXPECT_LE(relative_error(share, share.slice(-1, 0, 1).expand_as(share)), 2e-6) << form;
    const Tensor allotted = share.select(-1, 0).logit().mul(33.0 / 21);
    EXPECT_LE(relative_error(allotted.sum(1), at::full({2, 3}, 33.0)), 1e-4) << form;
  }
}

TEST(Flowformer, OrderDoesNotMatter) {
  NamedTensors in = inputs();
  const Tensor y = flow(in, "parallel").at("out");
  const Tensor keys = at::randperm(33), queries = at::randperm(21);
  in["k"] = in["k"].index_select(1, keys), in["v"] = in["v"].index_select(1, keys);
  in["q"] = in["q"].index_select(1, queries);
  EXPECT_LE(relative_error(flow(in, "parallel").at("out"), y.index_select(1, queries)), 2e-6);
}

TEST(Flowformer, CausalSumsOneByOne) {
  const NamedTensors in = inputs(25, 25);
  const auto wide = [&](const char* name) { return in.at(name).to(at::kDouble); };
  const Tensor f = wide("q").sigmoid(), g = wide("k").sigmoid(), v = wide("v");
  const double eps = 1e-6;
  const auto dot = [&](const Tensor& a, const Tensor& b) {
    return a.add(eps).mul(b.add(eps)).sum(-1, true);
  };
  const Tensor zero = at::zeros({2, 3, 5}, at::kDouble);
  Tensor sum_g = zero, sum_f = zero, sum_go = zero, sum_fi = zero;
  Tensor strength = at::zeros({2, 3, 1}, at::kDouble), state = at::zeros({2, 3, 5, 4}, at::kDouble);
  std::vector<Tensor> outs;
  for (int64_t i = 0; i < 25; ++i) {
    const double t = static_cast<double>(i + 1);
    const Tensor ft = f.select(1, i), gt = g.select(1, i);
    sum_g = sum_g.add(gt), sum_f = sum_f.add(ft);
    const Tensor incoming = dot(ft, sum_g).reciprocal().mul(t);
    sum_go = sum_go.add(gt.div(dot(gt, sum_f)).mul(t));
    sum_fi = sum_fi.add(ft.mul(incoming));
    const Tensor own = dot(gt, sum_fi).div(t).clamp(-1, 1).exp();
    strength = strength.add(own);
    const Tensor weighted = v.select(1, i).mul(own.mul(t).div(strength));
    state = state.add(gt.unsqueeze(-1).mul(weighted.unsqueeze(-2)));
    const Tensor read = ft.unsqueeze(-2).matmul(state).squeeze(-2);
    outs.push_back(read.mul(dot(ft, sum_go).div(t).sigmoid()).mul(incoming).div(t));
  }
  for (const char* form : {"naive", "chunked", "recurrent"}) {
    const NamedTensors y = flow(in, form, {{"causal", "true"}});
    EXPECT_LE(relative_error(y.at("out"), at::stack(outs, 1)), 2e-6) << form;
    EXPECT_LE(relative_error(y.at("final_state"), state), 2e-6) << form;
    EXPECT_LE(relative_error(y.at("final_flow"), at::cat({sum_g, sum_f, sum_go, sum_fi, strength,
                                                          at::full({2, 3, 1}, 25.0, at::kDouble)},
                                                         -1)),
              2e-6)
        << form;
  }
}

// With one feature the read is sum_j w_j g_j v_j / sum g: values 1/g_j show that the weights of the
// competition add up to the number of keys.
TEST(Flowformer, WeightsOfTheCompetitionSumToTheKeys) {
  at::manual_seed(19);
  const Tensor q = at::randn({2, 21, 3, 1}), k = at::randn({2, 33, 3, 1});
  const Tensor f = q.to(at::kDouble).sigmoid(), g = k.to(at::kDouble).sigmoid();
  const Tensor v = g.reciprocal().to(at::kFloat);
  const Tensor allotted = f.mul(33).div(f.sum(1, true)).mul(21.0 / 33).sigmoid();
  const Tensor expected = allotted.mul(33).div(g.sum(1, true));
  for (const char* form : {"naive", "parallel"}) {
    const Tensor y = flow({{"q", q}, {"k", k}, {"v", v}}, form, {{"eps", "0"}}).at("out");
    EXPECT_LE(relative_error(y, expected), 2e-6) << form;
  }
}

TEST(Flowformer, LayerReadsAContext) {
  at::manual_seed(23);
  LayerConfig config;
  config.hidden = 12;
  config.heads = 2;
  const auto layer = make_layer("flowformer", config);
  for (auto& [name, t] : layer->parameters()) t.add_(at::randn(t.sizes()).mul(0.2));
  const Tensor x = at::randn({2, 7, 12});
  Call self, cross;
  self.pattern = Pattern::kNoncausalSelf;
  cross.pattern = Pattern::kNoncausalCross;
  cross.context = x;
  EXPECT_LE(relative_error(layer->forward(x, cross), layer->forward(x, self)), 1e-6);
  cross.context = at::randn({2, 11, 12});
  EXPECT_EQ(layer->forward(x, cross).sizes(), x.sizes());
  cross.context = Tensor();
  EXPECT_THROW(layer->forward(x, cross), UsageError);
}

}  // namespace flowformer_test
}  // namespace heed::mixer
