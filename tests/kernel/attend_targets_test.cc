// attend on every instruction set that is compiled and that this machine has, the scalar one too,
// against the double reference: every weight, every storage type, lists, grids.
#include <gtest/gtest.h>

#include "hwy/targets.h"
#include "kernel/attend_case.h"

namespace heed::kernel {
namespace {

void check(const AttendCase& c, const std::string& target) {
  AttendData data(c);
  const auto want = data.reference();
  const auto got = data.run([](const AttendTable& t) { return attend_forward(t, nullptr); });
  ASSERT_EQ(data.status, HEED_OK) << c << " on " << target;
  const double wide = c.q_dtype == HEED_BFLOAT16 ? 6e-3 : 1e-3;
  const bool exact = c.q_dtype == HEED_FLOAT32;
  EXPECT_LE(relative_error(got.out, want.out), exact ? 2e-6 : wide) << c << " on " << target;
  EXPECT_LE(relative_error(got.lse, want.lse), 2e-6) << c << " on " << target;
  const auto grads = data.gradients(
      [](const AttendTable& t) { return attend_forward(t, nullptr); },
      [](const AttendTable& t, const AttendGradJob* g) { return attend_backward(t, g, nullptr); });
  const auto right = data.gradients(attend_reference, attend_backward_reference);
  for (size_t i = 0; i < std::size(AttendData::kGradients); ++i) {
    const auto member = AttendData::kGradients[i];
    EXPECT_LE(relative_error(grads.*member, right.*member), exact ? 1e-5 : 3 * wide)
        << AttendData::kGradientNames[i] << " of " << c << " on " << target;
  }
}

TEST(AttendTargets, EveryInstructionSetEqualsTheReference) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    const std::string name = hwy::TargetName(target);
    for (int32_t weight = 0; weight < kWeights; ++weight) {
      for (int32_t dtype : {HEED_FLOAT32, HEED_BFLOAT16, HEED_FLOAT16}) {
        for (int64_t queries : {2, 61}) {
          AttendCase c;
          c.weight = static_cast<Weight>(weight);
          c.q_dtype = c.kv_dtype = dtype, c.queries = queries, c.keys = 149, c.group = 3;
          c.head_dim = 21, c.value_dim = 35, c.bias = c.q_bias = c.relative_bias = true;
          c.slopes = true, c.window = 40, c.grad_lse = true;
          c.soft_cap = queries == 2 ? 3.0f : 0.0f;
          c.function = queries == 2 ? 1 : 0;
          check(c, name);
        }
      }
    }
    for (int64_t function = 0; function < kGenericWeights; ++function) {
      for (double power : {1.0, 2.0, 2.5}) {
        AttendCase c;
        c.weight = Weight::kGeneric, c.function = function, c.power = power;
        c.queries = 40, c.keys = 140, c.group = 2, c.bias = c.hide = true;
        check(c, name);
      }
    }
    AttendCase lists;
    lists.queries = 70, lists.keys = 150, lists.q_block = 24, lists.k_block = 16;
    for (bool any : {false, true}) {
      lists.any = any, lists.window = any ? 9 : 0;
      check(lists, name);
    }
    for (const std::vector<Axis>& axes : attend_grids()) {
      AttendCase c;
      c.axes = axes, c.queries = c.keys = cells(axes), c.group = 2, c.head_dim = 16;
      check(c, name);
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace heed::kernel
