#include "eval/measure.h"

#include <gtest/gtest.h>

#include "tiny_model.h"

namespace heed::eval {
namespace measure_test {

TEST(Measure, TextLossEqualsOneForwardPass) {
  const auto model = test::tiny_model();
  const auto texts = spread_windows(test::tiny_corpus(), 2, 300);
  Setting setting;
  setting.kv_dtype = at::kFloat;
  setting.chunk = 70;
  const auto result = measure_text(model, texts, setting, 33);
  ASSERT_EQ(result.texts.size(), 2u);
  for (size_t n = 0; n < 2; ++n) {
    at::NoGradGuard guard;
    Pass pass;
    const auto ids = at::tensor(texts[n], at::kLong).unsqueeze(0);
    const auto logits = model.forward(ids, pass)[0].slice(0, 32, 299).to(at::kDouble);
    const auto targets = ids[0].slice(0, 33).unsqueeze(1);
    const double nll =
        (at::logsumexp(logits, 1) - logits.gather(1, targets).squeeze(1)).sum().item<double>();
    EXPECT_EQ(result.texts[n].tokens, 300 - 33);
    EXPECT_NEAR(result.texts[n].nll, nll, 1e-3 * nll);
  }
  EXPECT_THROW(measure_text(model, texts, setting, 300), UsageError);
}

TEST(Measure, TimedStepsScoreTheSameTokens) {
  const auto model = test::tiny_model();
  const auto texts = spread_windows(test::tiny_corpus(), 2, 300);
  Setting setting;
  setting.kv_dtype = at::kFloat;
  const auto whole = measure_text(model, texts, setting, 33);
  const auto stepped = measure_text(model, texts, setting, 33, no_progress(), 7);
  for (size_t n = 0; n < 2; ++n) {
    EXPECT_EQ(stepped.texts[n].tokens, whole.texts[n].tokens);
    EXPECT_NEAR(stepped.texts[n].nll, whole.texts[n].nll, 1e-5 * whole.texts[n].nll);
  }
  EXPECT_EQ(stepped.latency.context, 293);
  EXPECT_EQ(stepped.latency.decode_times.size(), 7u);
  EXPECT_GT(stepped.latency.kv_bytes, 0);
  EXPECT_THROW(measure_text(model, texts, setting, 295, no_progress(), 7), UsageError);
}

TEST(Measure, ExpectedRecallIsTheMeanProbability) {
  std::vector<NeedleResult> results(4);
  for (int n = 0; n < 4; ++n) results[n].nll = n == 0 ? 0 : std::log(2.0) * n;
  EXPECT_NEAR(expected_recall_of(results), (1 + 0.5 + 0.25 + 0.125) / 4, 1e-12);
  EXPECT_EQ(expected_recall_of({}), 0);
}

TEST(Measure, NeedlesOnForksEqualNeedlesReadAlone) {
  const auto model = test::tiny_model();
  const data::RecallGenerator generator(test::tiny_corpus(), data::byte_codec());
  data::Random random(1);
  const auto document = generator.needles(600, 3, random);
  Setting setting;
  setting.kv_dtype = at::kFloat;
  const auto together = measure_needles(model, {document}, setting);
  ASSERT_EQ(together.size(), 3u);
  for (size_t n = 0; n < 3; ++n) {
    const auto& needle = document.needles[n];
    Tokens ids(document.tokens.begin(), document.tokens.end());
    ids.insert(ids.end(), needle.question.begin(), needle.question.end());
    const int64_t first = static_cast<int64_t>(ids.size());
    ids.insert(ids.end(), needle.answer.begin(), needle.answer.end());
    at::NoGradGuard guard;
    Pass pass;
    const auto input = at::tensor(ids, at::kLong).unsqueeze(0);
    const auto logits = model.forward(input, pass)[0].slice(0, first - 1, -1).to(at::kDouble);
    const auto targets = input[0].slice(0, first).unsqueeze(1);
    EXPECT_NEAR(
        together[n].nll,
        (at::logsumexp(logits, 1) - logits.gather(1, targets).squeeze(1)).sum().item<double>(),
        1e-2);
    EXPECT_EQ(together[n].hit, (logits.argmax(1) == targets.squeeze(1)).all().item<bool>());
  }
}

TEST(Measure, BytesAreThePlansFormula) {
  const auto model = test::tiny_model();
  Programs programs;
  programs.heads = {{{32, 4}, {}}, {{}, {100, 4}}, {{16, 0}, {16, 16}}};
  Setting setting;
  setting.programs = &programs;
  const auto text = spread_windows(test::tiny_corpus(), 1, 512)[0];
  const auto result = measure_latency(model, text, setting, 3);
  EXPECT_EQ(result.kv_formula, (36 + 512 + 512 + 104 + 16 + 32) * 2 * 16 * 2);
  EXPECT_NEAR(static_cast<double>(result.kv_bytes), static_cast<double>(result.kv_formula),
              0.02 * static_cast<double>(result.kv_formula));
  EXPECT_GT(result.decode_ms, 0);
  EXPECT_GT(result.attention_ms, 0);
}

TEST(Measure, RatioOfEqualRunsIsOne) {
  std::vector<NeedleResult> dense(100), plan(100);
  for (int n = 0; n < 80; ++n) dense[n].hit = plan[n].hit = true;
  const auto same = recall_ratio(plan, dense);
  EXPECT_EQ(same.value, 1);
  EXPECT_EQ(same.low, 1);
  for (int n = 0; n < 40; ++n) plan[n].hit = false;
  const auto half = recall_ratio(plan, dense);
  EXPECT_EQ(half.value, 0.5);
  EXPECT_LT(half.low, 0.5);
  EXPECT_GT(half.high, 0.5);
  EXPECT_GT(half.low, 0.3);
}

TEST(Measure, SaysHowMuchTextThereIs) {
  EXPECT_THROW(spread_windows(test::tiny_corpus(), 1, int64_t{1} << 30), UsageError);
}

}  // namespace measure_test
}  // namespace heed::eval
