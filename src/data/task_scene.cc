// See task_scene.h.
#include "data/task_scene.h"

#include <algorithm>

#include "data/task_words.h"
#include "io/error.h"

namespace heed::data {
namespace {

std::span<const char* const> words_of(std::string_view list) {
  for (const WordList& words : word_lists()) {
    if (words.name == list) return words.words;
  }
  throw Error("tasks have no list of words called {}", list);
}

}  // namespace

std::string Scene::fill(std::string_view pattern) {
  std::string text;
  for (size_t at = 0; at < pattern.size(); ++at) {
    const char c = pattern[at];
    if (c == '#') {
      text += static_cast<char>('0' + random_.below(10));
    } else if (c == '%') {
      text += "0123456789abcdef"[random_.below(16)];
    } else if (c == '{') {
      const size_t end = pattern.find('}', at);
      text += random_.pick(words_of(pattern.substr(at + 1, end - at - 1)));
      at = end;
    } else {
      text += c;
    }
  }
  return text;
}

std::string Scene::fresh(std::string_view pattern) {
  constexpr int kTries = 1000;
  for (int n = 0; n < kTries; ++n) {
    std::string text = fill(pattern);
    if (used_.insert(text).second) return text;
  }
  throw UsageError("no more than {} different \"{}\" fit in one text; ask for fewer questions",
                   used_.size(), pattern);
}

size_t Scene::say(std::string_view text, std::string_view answer, int series) {
  const TextCodec& codec = filler_.codec();
  Statement statement;
  statement.series = series;
  statement.answer = -1;
  const std::string paragraph = "\n\n" + std::string(text) + "\n\n";
  const auto words = codec.encode(answer);
  std::string_view rest = paragraph;
  for (size_t at; (at = rest.find("{a}")) != std::string_view::npos;) {
    append(statement.tokens, codec.encode(rest.substr(0, at)));
    if (statement.answer < 0) statement.answer = std::ssize(statement.tokens);
    append(statement.tokens, words);
    rest.remove_prefix(at + 3);
  }
  append(statement.tokens, codec.encode(rest));
  statement.answer = std::max<int64_t>(statement.answer, 0);
  statements_.push_back(std::move(statement));
  return statements_.size() - 1;
}

size_t Scene::say(std::vector<int32_t> tokens, int64_t answer) {
  statements_.push_back({std::move(tokens), answer, -1});
  return statements_.size() - 1;
}

Scene::Question& Scene::ask(size_t statement, std::string_view text, std::string_view answer,
                            double chance) {
  const TextCodec& codec = filler_.codec();
  Question& asked = ask(statement, codec.encode("\n\n" + std::string(text)), codec.encode(answer));
  asked.needle.value = answer;
  asked.needle.chance = chance;
  return asked;
}

Scene::Question& Scene::ask(size_t statement, std::vector<int32_t> question,
                            std::vector<int32_t> answer) {
  Question asked;
  asked.statement = statement;
  asked.needle.kind = kind_;
  asked.needle.question = std::move(question);
  asked.needle.answer = std::move(answer);
  asked.answer = statements_[statement].answer;
  return asked_.emplace_back(std::move(asked));
}

}  // namespace heed::data
