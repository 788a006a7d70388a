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

}  // namespace longvq_test
}  // namespace heed::mixer
