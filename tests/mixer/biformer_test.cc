// Bi-level routing: all regions chosen is full attention; one region that chooses itself is window
// attention; the local part is a correlation.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace {

using testing::relative_error;

NamedTensors inputs(uint64_t seed) {
  at::manual_seed(seed);
  return {{"q", at::randn({2, 48, 3, 8})},
          {"k", at::randn({2, 48, 3, 8})},
          {"v", at::randn({2, 48, 3, 6})}};
}

NamedTensors run(const NamedTensors& in, const char* form, SettingList settings) {
  settings.push_back({"grid", "6x8"});
  settings.push_back({"regions", "2"});
  return testing::run(find_mechanism("biformer"), in, form, settings);
}

TEST(BiFormer, AllRegionsAreFullAttention) {
  const NamedTensors in = inputs(1);
  const at::Tensor want =
      testing::run(find_mechanism("softmax"), in, "parallel", {{"scale", "0.2"}}).at("out");
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(relative_error(run(in, form, {{"topk", "4"}, {"scale", "0.2"}}).at("out"), want),
              2e-6);
  }
}

TEST(BiFormer, SeesExactlyTheTokensOfItsRegions) {
  NamedTensors in = inputs(2);
  in["q"] = in["q"].slice(2, 0, 1), in["k"] = in["k"].slice(2, 0, 1);
  in["v"] = at::eye(48).expand({2, 48, 48}).unsqueeze(2).contiguous();
  for (const char* form : {"naive", "parallel"}) {
    const NamedTensors y = run(in, form, {{"topk", "2"}});
    const at::Tensor seen = y.at("out").squeeze(2).gt(0);  // [B,T,T]
    EXPECT_TRUE(seen.sum(2).eq(24).all().item<bool>()) << form;
    const at::Tensor p = at::arange(48);
    const at::Tensor region =
        at::floor_divide(p, 24).mul(2).add(at::floor_divide(p.remainder(8), 4));
    for (int64_t i = 0; i < 48; ++i) {
      const at::Tensor chosen = y.at("indices")[0][region[i].item<int64_t>()];
      const at::Tensor want = region.unsqueeze(1).eq(chosen.unsqueeze(0)).any(1);
      ASSERT_TRUE(seen[0][i].equal(want)) << form << " token " << i;
    }
  }
}

TEST(BiFormer, AKernelOfOneAddsTheValues) {
  NamedTensors in = inputs(3), local = in;
  local["lepe_weight"] = at::ones({18, 1, 1}), local["lepe_bias"] = at::full({18}, 0.5);
  const at::Tensor plain = run(in, "parallel", {{"topk", "2"}}).at("out");
  for (const char* form : {"naive", "parallel"}) {
    EXPECT_LE(
        relative_error(run(local, form, {{"topk", "2"}}).at("out"), plain.add(in["v"]).add(0.5)),
        2e-6);
  }
}

}  // namespace
}  // namespace heed::mixer
