#include "plan/score.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "op/attend.h"
#include "tiny_model.h"

namespace heed::plan {
namespace score_test {

// The loss of the sample when head (layer, head) gives y + epsilon (y_p - y).
double mixed_loss(const Decoder& model, const Sample& sample, const Grid& grid, int64_t layer,
                  int64_t head, int64_t option, double epsilon) {
  at::NoGradGuard guard;
  Pass pass;
  pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const op::AttendOptions& options) {
    auto out = std::get<0>(op::attend(q, k, v, options)).clone();
    if (l == layer) {
      auto near = options;
      near.window = grid.program(option).window;
      near.sinks = grid.program(option).sinks;
      const auto other = std::get<0>(op::attend(q, k, v, near));
      const int64_t group = q.size(2) / k.size(2);
      auto part = out.slice(2, head * group, (head + 1) * group);
      part.add_(other.slice(2, head * group, (head + 1) * group) - part, epsilon);
    }
    return out;
  };
  const auto ids = at::tensor(sample.tokens, at::kLong).unsqueeze(0);
  const auto rows = at::tensor(sample.rows, at::kLong);
  const auto logits =
      model.logits(model.hidden(ids, pass)[0].index_select(0, rows)).to(at::kDouble);
  const auto targets = ids[0].index_select(0, rows + 1).unsqueeze(1);
  return (at::logsumexp(logits, 1) - logits.gather(1, targets).squeeze(1)).sum().item<double>();
}

Sample book_sample(int64_t tokens) {
  const auto corpus = test::tiny_corpus();
  const auto ids = corpus.slice(0, 100, tokens);
  return text_sample({ids.begin(), ids.end()}, 8);
}

TEST(Score, LinearTermIsTheDerivativeOfTheLoss) {
  const auto model = test::tiny_model();
  const auto sample = book_sample(97);
  const Grid grid{2, {4, 24}};
  const auto scores = score_heads(model, {sample}, grid, nullptr);
  EXPECT_NEAR(scores.loss, mixed_loss(model, sample, grid, 0, 0, 0, 0), 1e-3);
  constexpr double kStep = 1e-2;
  for (int64_t l = 0; l < 3; ++l) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t p = 0; p < 2; ++p) {
        const double derivative = (mixed_loss(model, sample, grid, l, h, p, kStep) -
                                   mixed_loss(model, sample, grid, l, h, p, -kStep)) /
                                  (2 * kStep);
        EXPECT_NEAR(scores.linear[scores.index(l, h, p)], derivative,
                    2e-2 * std::abs(derivative) + 5e-3)
            << l << "." << h << " option " << p;
      }
    }
  }
}

TEST(Score, AWindowOverEverythingCostsNothing) {
  const auto model = test::tiny_model();
  const auto sample = book_sample(64);
  const Grid grid{4, {8, 64}};
  const auto scores = score_heads(model, {sample}, grid, nullptr);
  for (int64_t l = 0; l < scores.layers; ++l) {
    for (int64_t h = 0; h < scores.heads; ++h) {
      EXPECT_GT(scores.quadratic[scores.index(l, h, 0)], 0);
      EXPECT_LT(scores.quadratic[scores.index(l, h, 1)],
                1e-6 * scores.quadratic[scores.index(l, h, 0)] + 1e-12);
      EXPECT_EQ(scores.quadratic[scores.index(l, h, 2)], 0);
    }
  }
}

TEST(Score, AroundAPlanTheCurrentProgramScoresZero) {
  const auto model = test::tiny_model();
  const auto sample = book_sample(80);
  const Grid grid{2, {8, 32}};
  Programs programs;
  programs.heads.assign(3, std::vector<HeadProgram>(2, grid.program(0)));
  const auto scores = score_heads(model, {sample}, grid, &programs);
  for (int64_t l = 0; l < scores.layers; ++l) {
    for (int64_t h = 0; h < scores.heads; ++h) {
      EXPECT_LT(scores.quadratic[scores.index(l, h, 0)],
                1e-6 * scores.quadratic[scores.index(l, h, 2)] + 1e-12);
      EXPECT_GT(scores.quadratic[scores.index(l, h, 2)], 0);
    }
  }
}

TEST(Score, AnswersWeighTheirProbability) {
  const auto model = test::tiny_model();
  data::Random random(5);
  const auto document =
      data::RecallGenerator(test::tiny_corpus(), data::byte_codec()).needles(300, 2, random);
  const Sample sample = needle_sample(document, 512);
  ASSERT_EQ(sample.answers.size(), 3u);
  EXPECT_EQ(sample.answers.back(), static_cast<int64_t>(sample.rows.size()));
  const Grid grid{4, {8}};
  double expected = 0;
  for (size_t n = 0; n < 2; ++n) {  // each answer alone, every row weighing 1
    Sample one{sample.tokens, {}, {}};
    one.rows.assign(sample.rows.begin() + sample.answers[n],
                    sample.rows.begin() + sample.answers[n + 1]);
    const double loss = score_heads(model, {one}, grid, nullptr).loss;
    expected += loss * std::max(0.1, std::exp(-loss));
  }
  EXPECT_NEAR(score_heads(model, {sample}, grid, nullptr).loss, expected, 1e-4 * expected);
}

TEST(Score, SurvivesJson) {
  const auto model = test::tiny_model();
  const auto scores = score_heads(model, {book_sample(40)}, Grid{2, {8}}, nullptr);
  const auto again = scores_from_json(Json::parse(to_json(scores).dump()), "here");
  EXPECT_EQ(again.quadratic, scores.quadratic);
  EXPECT_EQ(again.rows, scores.rows);
  EXPECT_THROW(scores_from_json(Json::parse("{\"layers\": 1}"), "here"), Error);
}

TEST(Score, FewerBitsCostMoreAndTwoCostMost) {
  const auto model = test::tiny_model();
  const std::vector<Sample> samples = {book_sample(97)};
  Grid grid{4, {24}};
  grid.bits = {8, 4, 2};
  const Centres centres = measure_centres(model, samples, grid.sinks);
  const auto scores = score_heads(model, samples, grid, nullptr, centres);
  for (int64_t l = 0; l < 3; ++l) {
    for (int64_t h = 0; h < 2; ++h) {
      for (const auto* sums : {&scores.keys, &scores.values}) {
        const auto at = [&](int64_t b) { return (*sums)[scores.bits_index(l, h, b)]; };
        EXPECT_LT(at(0), 0.2 * at(1)) << l << " " << h;
        EXPECT_LT(at(1), 0.5 * at(2)) << l << " " << h;
      }
    }
  }
  const Scores again = scores_from_json(to_json(scores), "test");
  EXPECT_EQ(again.keys, scores.keys);
  EXPECT_EQ(again.values, scores.values);
}

TEST(Score, CentresAreTheMeansOfKeysAndValues) {
  const auto model = test::tiny_model();
  const std::vector<Sample> samples = {book_sample(60), book_sample(90)};
  const Centres centres = measure_centres(model, samples, 5);
  at::Tensor sum;
  int64_t rows = 0;
  for (const Sample& sample : samples) {
    Pass pass;
    pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const op::AttendOptions& options) {
      if (l == 1) {
        const at::Tensor more = v.slice(1, 5).select(2, 1).sum(1)[0];
        sum = sum.defined() ? sum + more : more;
        rows += v.size(1) - 5;
      }
      return std::get<0>(op::attend(q, k, v, options));
    };
    at::NoGradGuard guard;
    model.hidden(at::tensor(sample.tokens, at::kLong).unsqueeze(0), pass);
  }
  const at::Tensor mean = at::tensor(centres[1][1]->v);
  EXPECT_TRUE(mean.allclose(sum / rows, 1e-3, 1e-4));
}

TEST(Score, CopiesEndWithPassagesOfTheText) {
  data::Random random(3);
  const auto corpus = test::tiny_corpus();
  for (const int64_t size : {200, 600, 4096}) {
    const auto ids = corpus.slice(0, 100, size);
    const Sample sample = copy_sample({ids.begin(), ids.end()}, random);
    EXPECT_EQ(static_cast<int64_t>(sample.tokens.size()), size);
    ASSERT_FALSE(sample.rows.empty());
    EXPECT_EQ(sample.rows.back(), size - 2);
    // What is scored stands in the text before.
    const int64_t first = sample.rows.front();
    const std::vector<int64_t> copy(sample.tokens.begin() + first,
                                    sample.tokens.begin() + first + 12);
    const auto end = sample.tokens.begin() + first - 1;
    EXPECT_NE(std::search(sample.tokens.begin(), end, copy.begin(), copy.end()), end);
  }
  EXPECT_THROW(copy_sample(eval::Tokens(20, 1), random), UsageError);
}

}  // namespace score_test
}  // namespace heed::plan
