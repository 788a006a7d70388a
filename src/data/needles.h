// Documents in which things are hidden that are asked for: what retrieval is measured with. A
// document is filler text from a corpus with statements planted in it; every question about it can
// be asked on a fork of one state that has read it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/codec.h"
#include "data/corpus.h"
#include "data/random.h"

namespace heed::data {

// A question is asked by appending it to `tokens`; under teacher forcing the answer follows, and
// recall is exact match of all its tokens. With one prefill of `tokens`, each question can be asked
// on a fork of the state.
struct NeedleDocument {
  std::vector<int32_t> tokens;
  struct Needle {
    int64_t begin = 0, end = 0;     // the statement is tokens[begin, end)
    int64_t code = 0;               // its code begins here
    double depth = 0;               // begin / tokens.size()
    std::string name, value;        // "silver harbour", "40132"
    std::vector<int32_t> question;  // ends just before the code
    std::vector<int32_t> answer;    // the code's tokens
    std::string kind = {};          // of task (data/tasks.h), or as a user's file calls it
    double chance = 0;              // exact share of who picks among the candidates in the text
  };
  std::vector<Needle> needles;
};

void append(std::vector<int32_t>& to, std::span<const int32_t> tokens);

// Text of a corpus as filler, and the places in it where something may stand.
class Filler {
 public:
  // Throws UsageError for a corpus without text and for a codec that cannot write digits.
  Filler(Corpus corpus, const TextCodec& codec);

  const TextCodec& codec() const { return codec_; }
  // `count` tokens of text from a random place, which begin at a word.
  std::vector<int32_t> text(int64_t count, Random& random) const;
  // The first place from `wanted` on, but not far, where a sentence (else a word) begins.
  int64_t boundary(std::span<const int32_t> tokens, int64_t wanted) const;
  // Tokens that are a whole word.
  const std::vector<int32_t>& words() const { return words_; }

  // `between` with piece n put in near depths[n] (ascending, 0 to 1); begins[n] is where it lies.
  std::vector<int32_t> plant(std::span<const int32_t> between,
                             std::span<const std::vector<int32_t>> pieces,
                             std::span<const double> depths, std::vector<int64_t>* begins) const;

 private:
  Corpus corpus_;
  TextCodec codec_;
  std::vector<int64_t> document_end_;                 // running sum of the documents' lengths
  std::vector<uint8_t> ends_sentence_, starts_word_;  // by token id
  std::vector<int32_t> words_;
};

}  // namespace heed::data
