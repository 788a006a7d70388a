// Synthetic text that can only be continued by looking back: what long-range heads are trained on
// and measured with. Everything is made from a seed, a tokenizer and a corpus whose passages are
// filler.
//
//   passkey           a five-digit code stated somewhere in the text, asked for at its end
//                     (Mohtashami & Jaggi, arXiv 2305.16300)
//   key-value list    lines `key: value`, then questions about some of them
//                     (Liu et al., "Lost in the middle", arXiv 2307.03172)
//   repeated passage  a passage (of text, or of random tokens) that comes again later: induction
//                     (Olsson et al., arXiv 2209.11895)
//   associative       multi-query associative recall: key and value tokens in pairs, then keys
//   again
//                     (Arora et al., "Zoology", arXiv 2312.04927)
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/codec.h"
#include "data/corpus.h"
#include "data/needles.h"
#include "data/random.h"

namespace heed::data {

enum class RecallKind { kPasskey, kKeyValue, kRepeatedPassage, kAssociative };
inline constexpr std::array<std::string_view, 4> kRecallKinds = {"passkey", "key_value",
                                                                 "repeated_passage", "associative"};

// A text together with the stretches that repeat what was said before.
struct RecallSample {
  RecallKind kind = RecallKind::kPasskey;
  std::vector<int32_t> tokens;
  // tokens[begin, end) are the answer; it was stated before at tokens[source, source + end -
  // begin).
  struct Answer {
    int64_t begin = 0, end = 0, source = 0;
    double depth() const { return begin > 0 ? static_cast<double>(source) / begin : 0; }
  };
  std::vector<Answer> answers;
};

class RecallGenerator {
 public:
  // Filler comes from `filler` (the held-out split when measuring). Throws UsageError for a codec
  // that cannot write digits.
  RecallGenerator(Corpus filler, const TextCodec& codec);

  // `length` tokens of book text with `count` codes at evenly spread depths (jittered within their
  // share); questions and answers are not part of `length`. Needles have different names.
  // With `context`, shorter where that leaves no room in it for the longest question and answer.
  // Throws UsageError when they do not fit.
  NeedleDocument needles(int64_t length, int64_t count, Random& random, int64_t context = 0) const;
  // The same with one needle at `depth` in [0, 1].
  NeedleDocument needle(int64_t length, double depth, Random& random) const;

  // Samples of exactly `length` tokens, questions and answers included; UsageError if too short.
  // A code at `depth`, asked for at the end.
  RecallSample passkey(int64_t length, double depth, Random& random) const;
  // `count` codes spread over the text, `asked` of them asked for at the end.
  RecallSample passkeys(int64_t length, int64_t count, int64_t asked, Random& random) const;
  // `pairs` lines, filler up to the length, then `asked` questions.
  RecallSample key_value(int64_t length, int64_t pairs, int64_t asked, Random& random) const;
  // Filler, a passage of `passage` tokens, filler, the passage again up to the end. The answer is
  // what follows the repeat's first 8 tokens. `random_tokens`: the passage is no text but random
  // words.
  RecallSample repeated_passage(int64_t length, int64_t passage, bool random_tokens,
                                Random& random) const;
  // `pairs` key and value tokens (random words), then `asked` of the keys again with their values;
  // what is left of the length is filler between the two.
  RecallSample associative(int64_t length, int64_t pairs, int64_t asked, Random& random) const;

  // A sample for training: kind by `shares` (in the order of RecallKind), sizes at random.
  // length >= kMinLength.
  RecallSample sample(int64_t length, std::span<const double> shares, Random& random) const;
  static constexpr int64_t kMinLength = 192;

  // Wordings of needles() that models differ in how well they answer; the default is kWordings[0].
  static constexpr std::array<int, 5> kWordings = {6, 7, 1, 3, 5};
  void use_wording(int wording) { wording_ = wording; }
  int wording() const { return wording_; }
  // "Remember: {name} ={code}."
  static std::string statement_of(int wording);

  // `count` tokens of text from a random place, which begin at a word.
  std::vector<int32_t> text(int64_t count, Random& random) const {
    return filler_.text(count, random);
  }
  const TextCodec& codec() const { return filler_.codec(); }

 private:
  // A code with its words, tokenised, before it has a place.
  struct Spec {
    std::string name, value;
    std::vector<int32_t> statement, question, answer;
    int64_t code = 0;  // where the answer begins in the statement
  };
  std::vector<Spec> make_specs(int64_t count, int wording, Random& random) const;
  // `length` tokens with spec n near depths[n] (ascending). False if they do not fit.
  bool place(int64_t length, std::span<const Spec> specs, std::span<const double> depths,
             bool plain_filler, Random& random, NeedleDocument* out) const;
  bool try_passkeys(int64_t length, std::span<const double> depths, int64_t asked, int wording,
                    bool plain_filler, Random& random, RecallSample* out) const;
  bool try_key_value(int64_t length, int64_t pairs, int64_t asked, int wording, Random& random,
                     RecallSample* out) const;
  std::vector<int32_t> filler(int64_t count, bool plain, Random& random) const;

  Filler filler_;
  int wording_ = kWordings[0];
};

}  // namespace heed::data
