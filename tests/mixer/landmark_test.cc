// Landmark attention's must-hold list, and the layer that reads some blocks alone.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "io/error.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace landmark_test {

using testing::relative_error;

constexpr int64_t kT = 61, kBlock = 7;

NamedTensors inputs(uint64_t seed) {
  at::manual_seed(seed);
  return {{"q", at::randn({2, kT, 3, 16})},
          {"k", at::randn({2, kT, 3, 16})},
          {"v", at::randn({2, kT, 3, 12})}};
}

at::Tensor out(const NamedTensors& in, const char* form, int64_t block = kBlock) {
  return testing::run(find_mechanism("landmark"), in, form, {{"block", std::to_string(block)}})
      .at("out");
}

const char* const kForms[] = {"naive", "parallel", "recurrent"};

at::Tensor landmarks() { return at::arange(1, kT + 1).remainder(kBlock + 1).eq(0); }

TEST(Landmark, WeightsSumToOneAndLandmarksWeighNothing) {
  NamedTensors in = inputs(1);
  in["v"] = at::eye(kT).view({1, kT, 1, kT}).expand({2, kT, 3, kT}).contiguous();
  for (const char* form : kForms) {
    const at::Tensor w = out(in, form);  // [B,T,H,T]: the weights themselves
    EXPECT_LE(relative_error(w.sum(3), at::ones({2, kT, 3})), 2e-6) << form;
    EXPECT_TRUE(w.index_select(3, landmarks().nonzero().squeeze(1)).eq(0).all().item<bool>())
        << form;
    // Every regular token before a query has some weight, none behind it.
    const at::Tensor seen = w.select(2, 0)[0].gt(0);
    const at::Tensor want =
        at::ones({kT, kT}, at::kBool).tril().logical_and(landmarks().logical_not());
    EXPECT_TRUE(seen.equal(want)) << form;
  }
}

// Landmark logits that are the logsumexp of their block: keys with one more dimension, in which
// landmarks hold what is missing, cannot do that for all queries; one query at a time can.
TEST(Landmark, WithTheBlocksLogsumexpIsSoftmaxOverRegularTokens) {
  NamedTensors in = inputs(2);
  const at::Tensor q = in["q"].to(at::kDouble), k = in["k"].to(at::kDouble);
  const int64_t i = kT - 3;
  const at::Tensor x = at::einsum("bhd,bjhd->bhj", {q.select(1, i), k}).div(4.0);  // [B,H,T]
  const at::Tensor norm = q.select(1, i).square().sum(-1);
  for (int64_t b = 0; b < i / (kBlock + 1); ++b) {
    const int64_t first = b * (kBlock + 1);
    const at::Tensor lse = x.slice(2, first, first + kBlock).logsumexp(-1);
    // The landmark's key along the query, so that its logit is lse.
    in["k"]
        .select(1, first + kBlock)
        .copy_(q.select(1, i).mul(lse.mul(4.0).div(norm).unsqueeze(2)).to(at::kFloat));
  }
  const at::Tensor regular = landmarks().logical_not().slice(0, 0, i + 1).nonzero().squeeze(1);
  const NamedTensors plain = {{"q", in["q"].slice(1, i, i + 1)},
                              {"k", in["k"].index_select(1, regular)},
                              {"v", in["v"].index_select(1, regular)}};
  const at::Tensor want = testing::run(find_mechanism("softmax"), plain, "parallel", {}).at("out");
  for (const char* form : kForms) {
    EXPECT_LE(relative_error(out(in, form).slice(1, i, i + 1), want), 4e-6) << form;
  }
}

TEST(Landmark, WithoutLandmarksIsDense) {
  const NamedTensors in = inputs(3);
  const at::Tensor want =
      testing::run(find_mechanism("softmax"), in, "parallel", {{"causal", "true"}}).at("out");
  for (const char* form : kForms) {
    EXPECT_LE(relative_error(out(in, form, kT), want), 2e-6) << form;
  }
}

// More queries than a run has, more blocks than a group.
TEST(Landmark, ManyRunsAndGroupsAreOne) {
  at::manual_seed(4);
  const NamedTensors in = {{"q", at::randn({1, 1100, 1, 8})},
                           {"k", at::randn({1, 1100, 1, 8})},
                           {"v", at::randn({1, 1100, 1, 4})}};
  EXPECT_LE(relative_error(out(in, "parallel", 15), out(in, "naive", 15)), 2e-6);
}

// The layer: with as many blocks as there are it is the training form, in chunks of any size; with
// fewer it differs, and reads the own block and the best.
TEST(Landmark, LayerReadsTheBestBlocks) {
  LayerConfig config;
  config.hidden = 32, config.heads = 4, config.kv_heads = 2;
  const auto make = [&](int64_t topk) {
    at::manual_seed(5);
    config.options = {{"block", kBlock}, {"topk", topk}, {"rope_theta", 100.0}};
    auto layer = make_layer("landmark", config);
    for (auto& [name, t] : layer->parameters()) t.mul_(10);
    return layer;
  };
  at::manual_seed(6);
  const at::Tensor x = at::randn({1, kT, 32});
  const auto run = [&](Layer& layer, const std::vector<int64_t>& sizes) {
    const auto state = layer.make_state();
    std::vector<at::Tensor> parts;
    int64_t begin = 0;
    for (const int64_t size : sizes) {
      Call call;
      call.states = {state.get()};
      parts.push_back(layer.forward(x.slice(1, begin, begin + size), call));
      begin += size;
    }
    return at::cat(parts, 1);
  };
  Call call;
  const at::Tensor whole = make(0)->forward(x, call);
  for (const int64_t topk : {0, 8, 100}) {
    for (const std::vector<int64_t>& sizes :
         {std::vector<int64_t>{kT}, {20, 41}, {59, 1, 1}, {3, 30, 28}}) {
      EXPECT_LE(relative_error(run(*make(topk), sizes), whole), 5e-6) << topk;
    }
  }
  const auto two = make(2);
  const at::Tensor y = two->forward(x, call);
  EXPECT_LE(relative_error(y.slice(1, 0, 3 * (kBlock + 1)), whole.slice(1, 0, 3 * (kBlock + 1))),
            5e-6);
  EXPECT_GT(relative_error(y, whole), 1e-3);
  EXPECT_LE(relative_error(run(*two, {20, 30, 1, 10}), y), 5e-6);
}

}  // namespace landmark_test
}  // namespace heed::mixer
