// Kolmogorov-Arnold attention: without harmonics only the base is left; harmonics repeat; linear in
// the coefficients.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace {

using testing::relative_error;

NamedTensors inputs(uint64_t seed) {
  Try one;
  one.sizes = {{"B", 2}, {"H", 3}, {"D", 8}, {"Dv", 6}, {"r", 2}, {"G", 4}};
  return testing::make_inputs(find_mechanism("karat"), one, 70, seed);
}

at::Tensor out(const NamedTensors& in, const char* form, const SettingList& settings = {}) {
  return testing::run(find_mechanism("karat"), in, form, settings).at("out");
}

TEST(Karat, WithoutHarmonicsTheIdentityIsLinearAttention) {
  NamedTensors in = inputs(1);
  in["a"].zero_(), in["b"].zero_();
  const at::Tensor q = in["q"].transpose(1, 2), k = in["k"].transpose(1, 2);
  const at::Tensor sum = at::matmul(q, k.transpose(2, 3)).div(std::sqrt(8.0)).sum(-1, true);
  const at::Tensor mixed = at::einsum("hjr,bjhd->bhd", {in["w"], in["v"]}).unsqueeze(2);
  const at::Tensor want = sum.mul(mixed).transpose(1, 2);
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(out(in, form, {{"base", "identity"}}), want), 1e-5) << form;
    EXPECT_TRUE(out(in, form).eq(0).all().item<bool>()) << form;
  }
}

TEST(Karat, IsLinearInTheCoefficientsAndEvenInTheCosines) {
  NamedTensors in = inputs(2), twice = in, turned = in;
  twice["a"] = in["a"].mul(2.0), twice["b"] = in["b"].mul(2.0);
  turned["b"] = in["b"].neg(), turned["q"] = in["q"].neg();  // e -> -e
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor y = out(in, form);
    EXPECT_LE(relative_error(out(twice, form), y.mul(2.0)), 2e-6) << form;
    EXPECT_LE(relative_error(out(turned, form), y), 2e-6) << form;
  }
}

}  // namespace
}  // namespace heed::mixer
