// Kinds of tasks: answers stand where they are said to stand, sizes hold, the splits share nothing.
#include "data/tasks.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "data/task_words.h"
#include "io/error.h"

namespace heed::data {
namespace tasks_test {

const TaskGenerator& generator() {
  static const TaskGenerator it(Corpus::load({HEED_SOURCE_DIR "/tests/data/books.txt"},
                                             byte_codec(), {.separator = "<|endofbook|>"}),
                                byte_codec(), {256});
  return it;
}

std::string text_of(std::span<const int32_t> tokens) { return byte_codec().decode(tokens); }

std::vector<const TaskKind*> all_kinds() {
  std::vector<const TaskKind*> kinds;
  for (const Split split : {Split::kEvaluation, Split::kCalibration}) {
    for (const TaskKind& kind : task_kinds(split)) {
      EXPECT_EQ(kind.split, split);
      kinds.push_back(&kind);
    }
  }
  return kinds;
}

TEST(Tasks, EveryKindFitsAndIsAnsweredByTheText) {
  for (const TaskKind* kind : all_kinds()) {
    for (const int64_t length : {4000, 9000}) {
      Random random(7);
      const auto document = generator().document(*kind, length, 4, random);
      ASSERT_TRUE(document) << kind->name;
      ASSERT_FALSE(document->needles.empty()) << kind->name;
      EXPECT_EQ(document->tokens[0], 256);
      int64_t longest = 0;
      std::set<std::string> questions;
      for (const auto& needle : document->needles) {
        EXPECT_EQ(needle.kind, kind->name);
        longest = std::max(longest, std::ssize(needle.question) + std::ssize(needle.answer));
        ASSERT_FALSE(needle.question.empty());
        ASSERT_FALSE(needle.answer.empty());
        EXPECT_TRUE(questions.insert(text_of(needle.question)).second) << kind->name;
        const auto said = std::span(document->tokens)
                              .subspan(static_cast<size_t>(needle.code), needle.answer.size());
        EXPECT_EQ(text_of(said), text_of(needle.answer)) << kind->name;
        EXPECT_LE(needle.chance, 0.5) << kind->name;
      }
      EXPECT_EQ(std::ssize(document->tokens) + longest, length) << kind->name;
    }
  }
}

TEST(Tasks, KindsShareADocument) {
  std::vector<const TaskKind*> kinds;
  for (const TaskKind& kind : task_kinds(Split::kEvaluation)) {
    if (kind.together == "needles") kinds.push_back(&kind);
  }
  ASSERT_EQ(kinds.size(), 5u);
  Random random(3);
  const auto document = generator().document(kinds, 9000, 3, random);
  ASSERT_TRUE(document);
  std::map<std::string, int> count;
  for (const auto& needle : document->needles) ++count[needle.kind];
  for (const TaskKind* kind : kinds) EXPECT_EQ(count[std::string(kind->name)], 3);
}

TEST(Tasks, FewerQuestionsWhereTheDocumentIsShort) {
  Random random(3);
  const TaskKind& kind = find_task("digits");
  const auto document = generator().document(kind, 700, 8, random);
  ASSERT_TRUE(document);
  EXPECT_LT(document->needles.size(), 8u);
  EXPECT_FALSE(generator().document(kind, 100, 8, random));
}

TEST(Tasks, SeedsDecide) {
  Random one(4), same(4), other(5);
  const TaskKind& kind = find_task("pairs");
  const auto a = generator().document(kind, 4000, 4, one)->tokens;
  EXPECT_EQ(a, generator().document(kind, 4000, 4, same)->tokens);
  EXPECT_NE(a, generator().document(kind, 4000, 4, other)->tokens);
}

TEST(Tasks, TheSplitsShareNoWord) {
  std::map<std::string, Split> words;
  for (const WordList& list : word_lists()) {
    for (const char* word : list.words) {
      const auto [at, is_new] = words.emplace(word, list.split);
      EXPECT_TRUE(is_new || at->second == list.split) << word;
    }
  }
  std::map<std::string_view, Split> patterns;
  for (const Sentence& sentence : task_sentences()) {
    const Split split = find_task(sentence.kind).split;
    for (const auto text : {sentence.statement, sentence.question}) {
      const auto [at, is_new] = patterns.emplace(text, split);
      EXPECT_TRUE(is_new || at->second == split) << text;
    }
    for (const auto pattern : {sentence.key, sentence.answer}) {
      for (const WordList& list : word_lists()) {
        if (pattern.find("{" + std::string(list.name) + "}") == std::string_view::npos) continue;
        EXPECT_EQ(list.split, split) << sentence.statement;
      }
    }
  }
}

TEST(Tasks, AnUnknownKindIsAnErrorThatListsAll) {
  try {
    find_task("needles");
    FAIL();
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("common_words"), std::string::npos);
  }
}

}  // namespace tasks_test
}  // namespace heed::data
