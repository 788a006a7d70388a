// The words and sentences that tasks are made of (data/tasks.h). A list belongs to one split, and
// no word stands in lists of both: a test holds this.
#pragma once

#include <span>
#include <string_view>

#include "data/tasks.h"

namespace heed::data {

struct WordList {
  std::string_view name;  // {name} in a pattern
  Split split;
  std::span<const char* const> words;
};
std::span<const WordList> word_lists();

// A planted sentence and the question about it. In patterns {LIST} is a word of a list, # a digit,
// % a hexadecimal digit; {k} stands for the key, {a} in a statement for the answer.
struct Sentence {
  std::string_view kind;  // of TaskKind
  std::string_view key, statement, question, answer;
};
std::span<const Sentence> task_sentences();

}  // namespace heed::data
