// FoX: without forgetting it is softmax attention; a constant gate is ALiBi; the far past goes.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace {

using testing::relative_error;

NamedTensors inputs(int64_t tokens, uint64_t seed) {
  Try one;
  one.sizes = {{"B", 2}, {"H", 4}, {"J", 2}, {"K", 16}, {"V", 12}};
  return testing::make_inputs(find_mechanism("fox"), one, tokens, seed);
}

at::Tensor out(const char* id, const NamedTensors& in, const char* form,
               const SettingList& settings = {}) {
  return testing::run(find_mechanism(id), in, form, settings).at("out");
}

TEST(Fox, WithoutForgettingIsSoftmaxAttention) {
  NamedTensors in = inputs(70, 1);
  in["log_decay"] = at::zeros_like(in["log_decay"]);
  const NamedTensors plain = {{"q", in["q"]}, {"k", in["k"]}, {"v", in["v"]}};
  const at::Tensor want = out("softmax", plain, "parallel", {{"causal", "true"}});
  for (const char* form : {"naive", "chunked"}) {
    EXPECT_LE(relative_error(out("fox", in, form), want), 2e-6) << form;
  }
}

TEST(Fox, ConstantForgettingIsAlibi) {
  NamedTensors in = inputs(600, 2);  // more than one run of queries
  const at::Tensor slopes = at::tensor({0.5, 0.25, 0.1, 0.01}, at::kFloat);
  in["log_decay"] = slopes.neg().expand({2, 600, 4}).contiguous();
  const NamedTensors alibi = {
      {"q", in["q"]}, {"k", in["k"]}, {"v", in["v"]}, {"alibi_slopes", slopes}};
  const at::Tensor want = out("softmax", alibi, "parallel", {{"causal", "true"}});
  EXPECT_LE(relative_error(out("fox", in, "naive"), want), 4e-6);
  EXPECT_LE(relative_error(out("fox", in, "chunked"), want), 1e-5);
}

TEST(Fox, StrongForgettingKeepsTheOwnTokenOnly) {
  NamedTensors in = inputs(40, 3);
  in["log_decay"] = at::full_like(in["log_decay"], -200.0);
  const at::Tensor own = in["v"].repeat_interleave(2, 2);
  for (const char* form : {"naive", "chunked"}) {
    EXPECT_LE(relative_error(out("fox", in, form), own), 1e-6) << form;
  }
}

TEST(Fox, GatesThatAreNotFiniteAreRefused) {
  NamedTensors in = inputs(5, 4);
  in["log_decay"].fill_(-INFINITY);
  EXPECT_THROW(out("fox", in, "naive"), std::exception);
}

}  // namespace
}  // namespace heed::mixer
