// LongVQ: what must hold of attention over quantised keys.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "io/error.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace longvq_test {

using testing::relative_error;

constexpr int64_t kT = 150, kK = 8, kV = 6, kM = 10;
const char* const kForms[] = {"naive", "chunked", "recurrent"};

NamedTensors inputs(uint64_t seed) {
  at::manual_seed(seed);
  return {{"q", at::randn({1, kT, 2, kK})},
          {"k", at::randn({1, kT, 2, kK})},
          {"v", at::randn({1, kT, 2, kV})},
          {"codebook", at::randn({2, kM, kK})},
          {"bias", at::randn({2, 12})}};
}

at::Tensor out(const NamedTensors& in, const std::string& form) {
  return testing::run(find_mechanism("longvq"), in, form, {{"chunk", "16"}}).at("out");
}

// Keys that are codewords already.
NamedTensors with_codeword_keys(NamedTensors in) {
  const at::Tensor z = at::randint(kM, {kT}, at::kLong);
  in["k"] = in.at("codebook").index_select(1, z).transpose(0, 1).unsqueeze(0).contiguous();
  return in;
}

TEST(LongVq, WithCodewordsForKeysIsSoftmaxAttention) {
  NamedTensors in = with_codeword_keys(inputs(1));
  in.erase("bias");
  const at::Tensor soft = testing::run(find_mechanism("softmax"),
                                       {{"q", in.at("q")}, {"k", in.at("k")}, {"v", in.at("v")}},
                                       "naive", {{"causal", "true"}}, at::kDouble)
                              .at("out");
  for (const char* form : kForms) EXPECT_LE(relative_error(out(in, form), soft), 2e-6) << form;
}

TEST(LongVq, QuantisingTwiceChangesNothing) {
  const NamedTensors in = inputs(2);
  const at::Tensor distance = at::cdist(in.at("k").transpose(1, 2), in.at("codebook"));
  const at::Tensor z = distance.argmin(-1).squeeze(0);
  NamedTensors twice = in;
  twice["k"] = at::stack({in.at("codebook")[0].index_select(0, z[0]),
                          in.at("codebook")[1].index_select(0, z[1])},
                         1)
                   .unsqueeze(0);
  for (const char* form : kForms) EXPECT_TRUE(out(in, form).equal(out(twice, form))) << form;
}

// One codeword at the origin: every logit is the bias, so without one out is the running mean.
TEST(LongVq, OfOneCodewordIsTheRunningMean) {
  NamedTensors in = inputs(3);
  in["codebook"] = at::zeros({2, 1, kK});
  in.erase("bias");
  const at::Tensor mean = in.at("v")
                              .to(at::kDouble)
                              .cumsum(1)
                              .div(at::arange(1, kT + 1, at::kDouble).view({1, kT, 1, 1}));
  for (const char* form : kForms) EXPECT_LE(relative_error(out(in, form), mean), 2e-6) << form;
}

// The gradient of k is the one at its codeword: that of softmax attention on the quantised keys.
TEST(LongVq, GradientsPassStraightThroughTheCodewords) {
  NamedTensors in = inputs(4), quantised = with_codeword_keys(in);
  in.erase("bias");
  quantised.erase("bias");
  // Keys near their codewords, so that both calls choose the same ones.
  in["k"] = quantised.at("k").add(at::randn_like(quantised.at("k")), 0.01);
  in["grad_out"] = quantised["grad_out"] = at::randn({1, kT, 2, kV});
  NamedTensors soft_in = quantised;
  soft_in.erase("codebook");
  const NamedTensors soft = testing::run(find_mechanism("softmax"), soft_in, "naive",
                                         {{"causal", "true"}}, at::kDouble, true);
  for (const char* form : {"naive", "chunked"}) {
    const NamedTensors grads =
        testing::run(find_mechanism("longvq"), in, form, {{"chunk", "16"}}, at::kFloat, true);
    for (const char* name : {"grad_q", "grad_k", "grad_v"}) {
      EXPECT_LE(relative_error(grads.at(name), soft.at(name)), 1e-5) << form << " " << name;
    }
    EXPECT_EQ(grads.at("grad_codebook").abs().max().item<double>(), 0) << form;
  }
}

TEST(LongVq, BiasIsNotWiderThanAChunk) {
  try {
    testing::run(find_mechanism("longvq"), inputs(5), "", {{"chunk", "11"}});
    FAIL() << "no error";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("tensor bias has W=12"), std::string::npos) << e.what();
  }
}

// Of old tokens one codeword keeps the mean, as one key that counts for all of them, beside the
// tokens of the window with their biases.
TEST(LongVq, OfOneCodewordOldValuesAreWeighedAgainstTheWindow) {
  NamedTensors in = inputs(6);
  in["codebook"] = at::randn({2, 1, kK});
  const auto wide = [&](const char* name) { return in.at(name).to(at::kDouble); };
  const at::Tensor logit = at::matmul(wide("q").transpose(1, 2), wide("codebook").transpose(1, 2))
                               .div(std::sqrt(double{kK}));
  for (const int64_t t : {20, 50, 149}) {
    const int64_t old = std::max<int64_t>(t - 11, 0);   // before the bias
    const at::Tensor v = wide("v")[0].transpose(0, 1);  // [H,T,V]
    const at::Tensor own = logit[0].select(1, t);       // [H,1]
    at::Tensor weights =
        at::cat({own.add(std::log(static_cast<double>(old))), own.add(wide("bias").flip(1))}, 1);
    weights = weights.softmax(-1);
    const at::Tensor values =
        at::cat({v.slice(1, 0, old).mean(1, true), v.slice(1, old, t + 1)}, 1);
    const at::Tensor expected = weights.unsqueeze(-1).mul(values).sum(1);
    for (const char* form : kForms) {
      EXPECT_LE(relative_error(out(in, form)[0][t], expected), 2e-6) << form << t;
    }
  }
}

TEST(LongVq, LayerCountsItsTokensAndPullsKeysToCodewords) {
  at::manual_seed(9);
  LayerConfig config;
  config.hidden = 12;
  config.heads = 2;
  config.options = {{"chunk", 4}, {"codes", 5}, {"bias", 3}, {"expansion", 2}};
  const auto layer = make_layer("longvq", config);
  const auto state = layer->make_state();
  const at::Tensor x = at::randn({1, 30, 12});
  for (int64_t t = 0; t < 30; ++t) {
    Call call;
    call.states = {state.get()};
    layer->forward(x.slice(1, t, t + 1), call);
    // All chunks before the last whole one and the open one.
    const int64_t absorbed = std::max<int64_t>(t / 4 - 1, 0) * 4;
    NamedTensors saved;
    state->save(saved, "");
    EXPECT_EQ(saved.at("count").sum().item<double>(), 2.0 * static_cast<double>(absorbed)) << t;
  }
  at::Tensor& codebook = layer->parameters().at("codebook");
  codebook.requires_grad_();
  const at::AutoGradMode mode(true);
  Aux aux;
  Call call;
  call.aux = &aux;
  const at::Tensor y = layer->forward(x, call);
  const at::Tensor loss = aux.losses().at("longvq");
  EXPECT_GT(loss.item<double>(), 0);
  const auto only = torch::autograd::grad({loss}, {codebook}, {}, true);
  EXPECT_GT(only[0].abs().sum().item<double>(), 0);
  codebook.detach_().sub_(only[0], 0.5);  // a step along the gradient brings them closer
  Aux after;
  call.aux = &after;
  codebook.requires_grad_();
  layer->forward(x, call);
  EXPECT_LT(after.losses().at("longvq").item<double>(), loss.item<double>());
}

}  // namespace longvq_test
}  // namespace heed::mixer
