// Kinds of questions about long texts, in the manner of RULER (Hsieh et al., arXiv 2404.06654): one
// table, each kind a small generator of statements that are planted in filler text and of questions
// about them. Everything is made from a seed, a tokenizer and a corpus.
//
// The table has two splits: one for searches for plans to calibrate on, one for `heed eval`. No
// wording, name or answer stands in both, and three kinds of the evaluation have no relative in the
// calibration at all: variables, common_words and values.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "data/needles.h"

namespace heed::data {

enum class Split { kCalibration, kEvaluation };

class Scene;  // what a kind puts its statements and questions into (tasks.cc)

struct TaskKind {
  std::string_view name;
  Split split;
  std::string_view together;  // kinds with the same word here can share documents
  std::string_view what;      // one line for people
  void (*make)(Scene& scene);
};

std::span<const TaskKind> task_kinds(Split split);
// Throws UsageError that lists the kinds where there is none of this name.
const TaskKind& find_task(std::string_view name);

class TaskGenerator {
 public:
  // `front`: what every document begins with (the model's begin token). Throws UsageError as Filler
  // does.
  TaskGenerator(Corpus filler, const TextCodec& codec, std::vector<int32_t> front = {});

  // A document with about `questions` questions of each kind, fewer where their statements would
  // fill more than half of it; with its longest question and answer it has `length` tokens.
  // Empty where not even one question of each kind fits.
  std::optional<NeedleDocument> document(std::span<const TaskKind* const> kinds, int64_t length,
                                         int64_t questions, Random& random) const;
  std::optional<NeedleDocument> document(const TaskKind& kind, int64_t length, int64_t questions,
                                         Random& random) const {
    return document(std::array{&kind}, length, questions, random);
  }

 private:
  Filler filler_;
  std::vector<int32_t> front_;
};

}  // namespace heed::data
