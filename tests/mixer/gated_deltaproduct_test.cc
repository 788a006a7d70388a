// Gated DeltaProduct: one step a token is the gated delta rule; two orthogonal reflections make a
// rotation, which no single step can.
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace gated_deltaproduct_test {

using testing::relative_error;

const char* const kForms[] = {"naive", "chunked", "recurrent"};

NamedTensors inputs(int64_t n, uint64_t seed) {
  Try one;
  one.sizes = {{"B", 1}, {"H", 2}, {"K", 16}, {"V", 12}, {"n", n}};
  return testing::make_inputs(find_mechanism("gated-deltaproduct"), one, 50, seed);
}

TEST(GatedDeltaProduct, OfOneStepIsTheGatedDeltaRule) {
  const NamedTensors in = inputs(1, 1);
  for (const char* form : kForms) {
    const NamedTensors a = testing::run(find_mechanism("gated-deltaproduct"), in, form, {});
    const NamedTensors b = testing::run(find_mechanism("gated-deltanet"), in, form, {});
    for (const auto& [name, t] : b) EXPECT_LE(relative_error(a.at(name), t), 2e-6) << form << name;
  }
}

// Steps with beta = 0 write nothing, wherever among a token's steps they stand.
TEST(GatedDeltaProduct, EmptyStepsChangeNothing) {
  const NamedTensors one = inputs(1, 2);
  NamedTensors three = one;
  for (const char* name : {"k", "v"}) {
    three[name] = at::repeat_interleave(one.at(name), 3, 1);
  }
  for (int64_t place = 0; place < 3; ++place) {
    const at::Tensor zero = at::zeros_like(one.at("beta")).unsqueeze(2);
    std::vector<at::Tensor> steps(3, zero);
    steps[place] = one.at("beta").unsqueeze(2);
    three["beta"] = at::cat(steps, 2).flatten(1, 2);
    for (const char* form : kForms) {
      const NamedTensors a = testing::run(find_mechanism("gated-deltaproduct"), three, form, {});
      const NamedTensors b = testing::run(find_mechanism("gated-deltanet"), one, form, {});
      EXPECT_LE(relative_error(a.at("out"), b.at("out")), 2e-6) << form << place;
    }
  }
}

// beta = 2 and unit keys u, w: S -> (I - 2 w w^T)(I - 2 u u^T) S, a rotation by twice the angle
// between them.
TEST(GatedDeltaProduct, TwoReflectionsRotate) {
  const double angle = 0.3;
  const at::Tensor u = at::tensor({1.0, 0.0}), w = at::tensor({std::cos(angle), std::sin(angle)});
  const NamedTensors in = {{"q", at::tensor({1.0, 0.0}).to(at::kFloat).view({1, 1, 1, 2})},
                           {"k", at::stack({u, w}).to(at::kFloat).view({1, 2, 1, 2})},
                           {"v", at::zeros({1, 2, 1, 2})},
                           {"beta", at::full({1, 2, 1}, 2.0)},
                           {"initial_state", at::eye(2).view({1, 1, 2, 2})}};
  const at::Tensor rotation = at::tensor({std::cos(2 * angle), -std::sin(2 * angle),
                                          std::sin(2 * angle), std::cos(2 * angle)})
                                  .view({2, 2});
  for (const char* form : kForms) {
    const at::Tensor state =
        testing::run(find_mechanism("gated-deltaproduct"), in, form, {}).at("final_state")[0][0];
    EXPECT_LE(relative_error(state, rotation), 2e-6) << form;
  }
}

}  // namespace gated_deltaproduct_test
}  // namespace heed::mixer
