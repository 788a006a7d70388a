// URPE's must-hold list: linear in C, C = 1 is relative attention, positions show with constant
// inputs only through C.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace {

using testing::relative_error;

constexpr int64_t kT = 45;

NamedTensors inputs(uint64_t seed) {
  Try one;
  one.sizes = {{"B", 2}, {"Hq", 4}, {"Hk", 2}, {"D", 16}, {"Dv", 12}, {"P", kT}};
  NamedTensors in = testing::make_inputs(find_mechanism("urpe"), one, kT, seed);
  in.erase("key_mask");
  return in;
}

at::Tensor out(const char* id, const NamedTensors& in, const char* form,
               const SettingList& settings = {}) {
  return testing::run(find_mechanism(id), in, form, settings).at("out");
}

TEST(Urpe, WithOnesIsRelativeAttention) {
  NamedTensors in = inputs(1);
  in["c"] = at::ones_like(in["c"]);
  NamedTensors plain = {{"q", in["q"]}, {"k", in["k"]}, {"v", in["v"]}};
  in.erase("b");
  for (const char* causal : {"false", "true"}) {
    const SettingList settings = {{"causal", causal}};
    const at::Tensor want = out("softmax", plain, "parallel", settings);
    for (const char* form : {"naive", "parallel"}) {
      EXPECT_LE(relative_error(out("urpe", in, form, settings), want), 2e-6) << form << causal;
    }
  }
}

TEST(Urpe, IsLinearInCAndBlindToAConstantBias) {
  NamedTensors in = inputs(2), more = in;
  more["c"] = in["c"].mul(-3.0);
  more["b"] = in["b"].add(5.0);
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(out("urpe", more, form), out("urpe", in, form).mul(-3.0)), 4e-6);
  }
}

TEST(Urpe, ConstantInputsShowPositionsOnlyThroughC) {
  NamedTensors in = inputs(3);
  for (const char* name : {"q", "k", "v"})
    in[name] = in[name].slice(1, 0, 1).expand_as(in[name]).contiguous();
  const at::Tensor y = out("urpe", in, "parallel");
  EXPECT_GT(relative_error(y.select(1, 0), y.select(1, 20)), 1e-2);
  in["c"] = at::ones_like(in["c"]);
  const at::Tensor same = out("urpe", in, "parallel");
  EXPECT_LE(relative_error(same, same.slice(1, 0, 1).expand_as(same)), 2e-6);
}

TEST(Urpe, PairsOutsideTheTableAreRefused) {
  NamedTensors in = inputs(4);
  in["c"] = at::ones({4, 2 * kT - 3}), in.erase("b");
  for (const char* form : {"naive", "parallel"})
    EXPECT_THROW(out("urpe", in, form), std::exception);
}

}  // namespace
}  // namespace heed::mixer
