// Generalized neighborhood attention's must-hold list.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace {

using testing::relative_error;

at::Tensor out(const char* id, const NamedTensors& in, const char* form,
               const SettingList& settings) {
  return testing::run(find_mechanism(id), in, form, settings).at("out");
}

// Which keys each query sees, [T,T].
at::Tensor seen(const char* form, int64_t tokens, const SettingList& settings) {
  const NamedTensors in = {{"q", at::zeros({1, tokens, 1, 4})},
                           {"k", at::zeros({1, tokens, 1, 4})},
                           {"v", at::eye(tokens).view({1, tokens, 1, tokens})}};
  return out("gna", in, form, settings).view({tokens, tokens}).gt(0);
}

TEST(Gna, StrideOneIsNeighborhoodAttention) {
  at::manual_seed(1);
  const NamedTensors in = {{"q", at::randn({1, 60, 4, 8})},
                           {"k", at::randn({1, 60, 2, 8})},
                           {"v", at::randn({1, 60, 2, 8})}};
  for (const char* causal : {"0x0", "1x0", "1x1"}) {
    const SettingList settings = {{"grid", "6x10"}, {"window", "3x4"}, {"causal", causal}};
    for (const char* form : {"naive", "parallel"}) {
      EXPECT_TRUE(out("gna", in, form, settings).equal(out("fna", in, form, settings)));
    }
  }
}

TEST(Gna, StrideOfTheWindowIsBlockedAttention) {
  const at::Tensor block = at::floor_divide(at::arange(24), 6);
  const at::Tensor want = block.unsqueeze(1).eq(block.unsqueeze(0));
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_TRUE(seen(form, 24, {{"window", "6"}, {"stride", "6"}}).equal(want)) << form;
  }
}

TEST(Gna, MembersOfAStrideShareTheWindowAndWindowsOnlyMoveOn) {
  for (const char* form : {"naive", "parallel"}) {
    const at::Tensor s = seen(form, 29, {{"window", "7"}, {"stride", "4"}});
    const at::Tensor first = s.to(at::kLong).argmax(1);
    EXPECT_TRUE(s.sum(1).eq(7).all().item<bool>()) << form;
    for (int64_t i = 0; i + 1 < 29; ++i) {
      EXPECT_LE(first[i].item<int64_t>(), first[i + 1].item<int64_t>()) << form << i;
      if (i % 4 == 3) continue;
      EXPECT_TRUE(s[i].equal(s[i + 1])) << form << i;
    }
  }
}

}  // namespace
}  // namespace heed::mixer
