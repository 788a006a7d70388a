// The engine `mix`: short convolutions, causal with state and shifted, with fixed and generated
// kernels, against the reference, and the reference against a convolution written out.
#include "kernel/mix/mix.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernel/engine_helper.h"
#include "kernel/parallel.h"

namespace heed::kernel::test {
namespace {

const TestedEngine kConv = {kShortConv, short_conv_backends,
                            [](const void* call, int32_t pass, heed_message* message) {
                              return short_conv_reference(*static_cast<const ShortConvCall*>(call),
                                                          pass, message);
                            },
                            [](const std::string&, double normal, double) { return normal; }};

std::vector<EngineCase> conv_cases() {
  EngineCase c;
  c.sizes = {{"B", 2}, {"T", 83}, {"C", 21}, {"L", 4}, {"L-1", 3}, {"H", 3}};
  c.options["silu"] = 1;
  std::vector<EngineCase> cases = {c};
  c.options["silu"] = 0;
  c.absent = {"bias", "initial_state"};
  c.sizes["C"] = 130;
  cases.push_back(c);
  c.sizes["L"] = 7;
  c.sizes["L-1"] = 6;
  for (const double ahead : {3.0, 6.0}) {
    c.options["ahead"] = ahead;
    cases.push_back(c);
  }
  EngineCase generated = cases[0];
  generated.ranks["weight"] = 4;
  cases.push_back(generated);
  generated.absent = {"initial_state"};
  generated.options = {{"ahead", 2}};
  generated.sizes["C"] = 3 * 67;
  cases.push_back(generated);
  EngineCase one = cases[0];  // a kernel of one tap has no history
  one.sizes["L"] = 1;
  one.sizes["L-1"] = 0;
  one.absent = {"initial_state"};
  cases.push_back(one);
  return cases;
}

TEST(MixKernel, EveryTargetAndDtypeEqualsTheReference) {
  for (const EngineCase& c : conv_cases()) expect_every_target(kConv, c);
}

TEST(MixKernel, PacksPaddingShortAndEmptySequences) {
  ThreadPool pool(3);
  for (EngineCase c : conv_cases()) {
    c.padding = 3;
    for (const int64_t time : {0, 1, 2, 64, 65, 130}) {
      c.sizes["T"] = time;
      if (time == 1 && c.options["ahead"] > 0) continue;  // no step
      expect_engine_equals_reference(kConv, c, pool.parallel());
    }
    c.sizes["B"] = 1;
    c.sizes["T"] = 101;
    c.cu_seqlens = {0, 1, 1, 65, 101, 101};
    expect_engine_equals_reference(kConv, c, pool.parallel());
  }
}

// x = 1, 2, 3, ...: the last tap meets the current token, the state stands before the first.
TEST(MixReference, IsTheConvolution) {
  Stored x(HEED_FLOAT32, {1, 4, 1}), weight(HEED_FLOAT32, {1, 3}), state(HEED_FLOAT32, {1, 2, 1});
  Stored out(HEED_FLOAT64, {1, 4, 1}), final(HEED_FLOAT64, {1, 2, 1});
  for (int i = 0; i < 4; ++i) x.set(i, i + 1);
  for (int i = 0; i < 3; ++i) weight.set(i, std::pow(10, i));
  state.set(0, 8);
  state.set(1, 9);
  ShortConvCall call;
  call.in = {x.view(), weight.view(), {}, state.view(), out.view(), final.view()};
  heed_message message = {};
  ASSERT_EQ(short_conv_reference(call, HEED_FORWARD, &message), HEED_OK) << message.text;
  EXPECT_EQ(out.values(), (std::vector<double>{198, 219, 321, 432}));
  EXPECT_EQ(final.values(), (std::vector<double>{3, 4}));
  call.in.initial_state = call.in.final_state = {};
  call.options.ahead = 1;
  ASSERT_EQ(short_conv_reference(call, HEED_FORWARD, &message), HEED_OK) << message.text;
  EXPECT_EQ(out.values(), (std::vector<double>{210, 321, 432, 43}));
}

TEST(MixKernel, SaysWhatDoesNotFit) {
  EngineRun run(kConv, conv_cases()[0]);
  heed_message message = {};
  auto* call = static_cast<ShortConvCall*>(run.call(false));
  const heed_backend& cpu = short_conv_backends()[0];
  call->options.ahead = 1;
  EXPECT_EQ(cpu.run(call, HEED_FORWARD, nullptr, nullptr, nullptr, &message),
            HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message.text,
               "short_conv: ahead = 1 reads tokens to come: there is no state and no step");
  call = static_cast<ShortConvCall*>(run.call(false));
  call->options.ahead = 4;
  EXPECT_EQ(cpu.run(call, HEED_FORWARD, nullptr, nullptr, nullptr, &message),
            HEED_INVALID_ARGUMENT);
  EXPECT_STREQ(message.text, "short_conv: ahead is 4, expected 0 to L - 1 = 3");
}

}  // namespace
}  // namespace heed::kernel::test
