// Synthetic recall text: answers were said before, sizes are exact, the same seed gives the same
// text.
#include "data/recall.h"

#include <gtest/gtest.h>

#include <set>

#include "data/random.h"
#include "io/error.h"

namespace heed::data {
namespace recall_test {

const RecallGenerator& generator() {
  static const RecallGenerator it(Corpus::load({HEED_SOURCE_DIR "/tests/data/books.txt"},
                                               byte_codec(), {.separator = "<|endofbook|>"}),
                                  byte_codec());
  return it;
}

std::string text_of(std::span<const int32_t> tokens) { return byte_codec().decode(tokens); }

void check(const RecallSample& sample, int64_t length) {
  ASSERT_EQ(static_cast<int64_t>(sample.tokens.size()), length);
  ASSERT_FALSE(sample.answers.empty());
  for (const auto& answer : sample.answers) {
    ASSERT_LT(answer.begin, answer.end);
    ASSERT_LE(answer.end, length);
    ASSERT_LE(answer.source + (answer.end - answer.begin), answer.begin);
    for (int64_t n = 0; n < answer.end - answer.begin; ++n) {
      EXPECT_EQ(sample.tokens[answer.begin + n], sample.tokens[answer.source + n]);
    }
  }
}

TEST(Recall, EveryKindAnswersWhatWasSaid) {
  Random random(1);
  for (const int64_t length : {192, 300, 1024, 4096}) {
    for (int trial = 0; trial < 40; ++trial) {
      for (size_t kind = 0; kind < kRecallKinds.size(); ++kind) {
        std::vector<double> shares(4, 0);
        shares[kind] = 1;
        check(generator().sample(length, shares, random), length);
      }
    }
  }
}

TEST(Recall, PasskeyStandsWhereItWasAskedToBe) {
  Random random(2);
  for (const double depth : {0.0, 0.25, 0.5, 1.0}) {
    const auto sample = generator().passkey(2000, depth, random);
    check(sample, 2000);
    EXPECT_NEAR(sample.answers[0].depth(), depth, 0.1);
    const auto& answer = sample.answers[0];
    const std::string code =
        text_of(std::span(sample.tokens).subspan(answer.begin, answer.end - answer.begin));
    EXPECT_EQ(code.size(), 6u);
    EXPECT_EQ(code[0], ' ');
    EXPECT_TRUE(text_of(std::span(sample.tokens).first(answer.begin)).ends_with("The pass key is"));
  }
}

TEST(Recall, NeedlesHaveNamesOfTheirOwnAndQuestionsThatFit) {
  Random random(3);
  const auto document = generator().needles(8000, 20, random);
  EXPECT_EQ(document.tokens.size(), 8000u);
  ASSERT_EQ(document.needles.size(), 20u);
  std::set<std::string> names;
  double before = -1;
  for (const auto& needle : document.needles) {
    EXPECT_TRUE(names.insert(needle.name).second);
    EXPECT_GE(needle.depth, before);
    before = needle.depth;
    EXPECT_EQ(text_of(needle.answer), " " + needle.value);
    const std::span tokens(document.tokens);
    const auto code = tokens.subspan(needle.code, needle.answer.size());
    EXPECT_TRUE(std::equal(code.begin(), code.end(), needle.answer.begin()));
    const std::string statement = text_of(tokens.subspan(needle.begin, needle.end - needle.begin));
    EXPECT_NE(statement.find(needle.name), std::string::npos);
    EXPECT_NE(text_of(needle.question).find(needle.name), std::string::npos);
  }
  EXPECT_GT(document.needles.back().depth, 0.8);
  EXPECT_THROW(generator().needles(500, 20, random), UsageError);
  // In a context that the document would fill there is room for the longest question and answer.
  const auto small = generator().needles(700, 2, random, 700);
  for (const auto& needle : small.needles) {
    EXPECT_LE(small.tokens.size() + needle.question.size() + needle.answer.size(), 700u);
  }
}

TEST(Recall, EveryWordingFindsNamesForManyNeedles) {
  Random random(3);
  for (int wording : RecallGenerator::kWordings) {
    auto of_wording = generator();
    of_wording.use_wording(wording);
    for (int64_t count : {8, 64, 65, 256}) {
      std::set<std::string> names;
      for (const auto& needle : of_wording.needles(150 * count, count, random).needles) {
        EXPECT_TRUE(names.insert(needle.name).second) << needle.name;
      }
    }
  }
}

TEST(Recall, SeedsDecide) {
  Random one(4), same(4), other(5);
  const std::vector<double> shares = {1, 1, 1, 1};
  const auto a = generator().sample(900, shares, one).tokens;
  EXPECT_EQ(a, generator().sample(900, shares, same).tokens);
  EXPECT_NE(a, generator().sample(900, shares, other).tokens);
}

TEST(Recall, RefusesTextsThatAreTooShort) {
  Random random(6);
  EXPECT_THROW(generator().passkey(50, 0.5, random), UsageError);
  EXPECT_THROW(generator().key_value(100, 20, 2, random), UsageError);
  EXPECT_THROW(generator().associative(20, 20, 2, random), UsageError);
  EXPECT_THROW(generator().repeated_passage(100, 60, false, random), UsageError);
  EXPECT_THROW(generator().sample(100, std::vector<double>{1, 1, 1, 1}, random), UsageError);
}

TEST(Random, IsUniformAndFixed) {
  Random random(0);
  EXPECT_EQ(random.next(), Random(0).next());
  int counts[7] = {};
  for (int n = 0; n < 70000; ++n) ++counts[random.below(7)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 500);
  double sum = 0;
  for (int n = 0; n < 10000; ++n) sum += random.uniform();
  EXPECT_NEAR(sum / 10000, 0.5, 0.02);
}

}  // namespace recall_test
}  // namespace heed::data
