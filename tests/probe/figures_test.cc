#include "probe/figures.h"

#include <gtest/gtest.h>

#include <cmath>

#include "io/error.h"
#include "op/attend.h"
#include "tiny_model.h"

namespace heed::probe {
namespace figures_test {

TEST(Figures, EqualThoseOfTheExplicitMap) {
  const auto model = test::tiny_model();
  constexpr int64_t kTokens = 120;
  const auto corpus = test::tiny_corpus();
  FigureInputs inputs;
  inputs.texts = eval::spread_windows(corpus, 1, kTokens);
  auto half = corpus.slice(0, 500, 60);
  eval::Tokens twice(half.begin(), half.end());
  twice.insert(twice.end(), half.begin(), half.end());
  inputs.repeats = {twice};
  const auto figures = measure_heads(model, inputs);
  const int64_t from = figures.from;

  at::NoGradGuard guard;
  const auto check = [&](const eval::Tokens& text, auto compare) {
    Pass pass;
    pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const op::AttendOptions& options) {
      const auto keys = k.repeat_interleave(2, 2);
      auto logits = at::einsum("bihd,bjhd->bhij", {q, keys})[0].to(at::kDouble) / std::sqrt(16.0);
      logits.masked_fill_(at::ones({kTokens, kTokens}, at::kBool).triu(1), -INFINITY);
      const auto map = at::softmax(logits, -1);
      for (int64_t h = 0; h < 4; ++h) compare(figures.heads[l][h], map[h]);
      return std::get<0>(op::attend(q, k, v, options));
    };
    model.hidden(at::tensor(text, at::kLong).unsqueeze(0), pass);
  };
  check(inputs.texts[0], [&](const HeadFigures& f, const at::Tensor& map) {
    const auto rows = map.slice(0, from);
    EXPECT_NEAR(f.sink, rows.slice(1, 0, 4).sum(1).mean().item<double>(), 1e-4);
    EXPECT_NEAR(f.entropy, at::special_entr(rows).sum(1).mean().item<double>(), 2e-3);
    const auto columns = rows.slice(1, 4).mean(0);
    EXPECT_NEAR(f.peak, columns.max().item<double>(), 1e-4);
    double near = 0;
    for (int64_t i = from; i < kTokens; ++i)
      near += map[i].slice(0, i - 15, i + 1).sum().item<double>();
    EXPECT_NEAR(f.local.at(2), near / static_cast<double>(kTokens - from), 1e-4);
    EXPECT_GT(f.importance, 0);
  });
  check(twice, [&](const HeadFigures& f, const at::Tensor& map) {
    double repeat = 0, echo = 0;
    for (int64_t i = 60; i < 120; ++i) echo += map[i][i - 60].item<double>();
    for (int64_t i = 60; i < 119; ++i) repeat += map[i][i - 59].item<double>();
    EXPECT_NEAR(f.echo, echo / 60, 1e-4);
    EXPECT_NEAR(f.repeat, repeat / 59, 1e-4);
  });
}

// Heads whose weights are no softmax of q.k alone have no figures; a model without any others is
// refused.
TEST(Figures, OtherWeightsAreLeftOut) {
  FigureInputs inputs;
  inputs.texts = eval::spread_windows(test::tiny_corpus(), 1, 100);
  inputs.repeats = {inputs.texts[0]};
  ModelConfig config = test::tiny_config();
  config.mixers[0] = {"fox", Json::object()};
  config.mixers[1] = {"gla", Json::object()};
  const auto figures = measure_heads(Decoder::random(config, 3), inputs);
  EXPECT_EQ(figures.other_weights, std::vector<int64_t>{0});
  EXPECT_TRUE(figures.heads[0].empty());
  EXPECT_TRUE(figures.heads[1].empty());
  ASSERT_EQ(figures.heads[2].size(), 4u);
  EXPECT_GT(figures.heads[2][0].importance, 0);
  config.mixers[0] = {"sigmoid-attention", Json::object()};
  config.mixers[2] = config.mixers[1];
  EXPECT_THROW(measure_heads(Decoder::random(config, 3), inputs), UsageError);
}

TEST(Figures, NeedleScoreIsAShareAndJsonHasEveryHead) {
  const auto model = test::tiny_model();
  const auto corpus = test::tiny_corpus();
  const data::RecallGenerator generator(corpus, data::byte_codec());
  auto inputs = make_inputs(generator, corpus, 1024, 1, 4);
  inputs.importance = false;
  const auto figures = measure_heads(model, inputs);
  for (const auto& layer : figures.heads) {
    for (const auto& head : layer) {
      EXPECT_GE(head.needle, 0);
      EXPECT_LE(head.needle, 1);
      EXPECT_EQ(head.importance, 0);
    }
  }
  const auto json = to_json(figures);
  ASSERT_EQ(json["heads"].size(), 3u);
  ASSERT_EQ(json["heads"][0].size(), 4u);
  for (const auto& [key, value] : json["heads"][0][0].items()) {
    if (key == "peak_position") continue;
    EXPECT_TRUE(json["definitions"].contains(key)) << key << " is not defined";
  }
}

}  // namespace figures_test
}  // namespace heed::probe
