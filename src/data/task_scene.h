// What a kind of task writes into: statements to be planted and questions about them.
#pragma once

#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "data/needles.h"

namespace heed::data {

class Scene {
 public:
  struct Statement {
    std::vector<int32_t> tokens;
    int64_t answer = 0;  // where its answer begins
    int series = -1;     // statements of one series keep their order
  };
  struct Question {
    size_t statement = 0;
    NeedleDocument::Needle needle;
    int64_t answer = 0;  // where in the statement the answer was said
  };

  // `room`: tokens that all statements of one kind should stay within.
  Scene(const Filler& filler, Random& random, int64_t room, int64_t questions)
      : filler_(filler), random_(random), room_(room), questions_(questions) {}

  Random& random() { return random_; }
  const Filler& filler() const { return filler_; }
  int64_t room() const { return room_; }
  int64_t questions() const { return questions_; }
  void begin_kind(std::string_view kind) { kind_ = kind; }
  std::string_view kind() const { return kind_; }

  // One of `items`.
  std::string pick(std::span<const char* const> items) { return random_.pick(items); }
  // `pattern` with {NAME} replaced by words of the list NAME (task_words.h), so that no text comes
  // twice in this document.
  std::string fresh(std::string_view pattern);
  // The same, where it may come again.
  std::string fill(std::string_view pattern);

  // A paragraph of its own: `text`, in which {a} is the answer, tokenised apart so that it has the
  // same tokens everywhere.
  size_t say(std::string_view text, std::string_view answer, int series = -1);
  // A paragraph made of tokens.
  size_t say(std::vector<int32_t> tokens, int64_t answer);
  // `text` ends where `answer` follows; `chance`: of a guess among the text's candidates.
  Question& ask(size_t statement, std::string_view text, std::string_view answer,
                double chance = 0);
  Question& ask(size_t statement, std::vector<int32_t> question, std::vector<int32_t> answer);

  const std::vector<Statement>& statements() const { return statements_; }
  const std::vector<Question>& asked() const { return asked_; }
  int new_series() { return series_++; }

 private:
  const Filler& filler_;
  Random& random_;
  int64_t room_, questions_;
  std::string kind_;
  std::set<std::string> used_;
  std::vector<Statement> statements_;
  std::vector<Question> asked_;
  int series_ = 0;
};

}  // namespace heed::data
