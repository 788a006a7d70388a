// What a model is worth under a plan, measured through the very caches that it would run with:
// perplexity on long documents, answers to questions about them, and what both cost in time and
// memory. Dense and plan go the same way, so that a ratio of the two compares like with like.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/program.h"
#include "data/corpus.h"
#include "data/needles.h"
#include "data/recall.h"
#include "io/progress.h"
#include "model/decoder.h"

namespace heed::eval {

using Tokens = std::vector<int64_t>;

// How a model is run. `programs` null: every head full.
struct Setting {
  const Programs* programs = nullptr;
  at::ScalarType kv_dtype = at::kHalf;
  int64_t chunk = 0;  // tokens a prefill pass; 0: 512 on the CPU, 4096 on a GPU
};

// Time and memory at one context length.
struct Latency {
  int64_t context = 0;
  double first_token_ms = 0;  // reading `context` tokens and scoring the next
  double decode_ms = 0;       // a token, median of `steps`
  double attention_ms = 0;    // of that, the attention calls of all layers (timed alone)
  int64_t kv_bytes = 0;       // allocated
  int64_t kv_formula = 0;     // by the plan's formula
  std::vector<double> decode_times, attention_times;  // ms, what the medians above are of
  std::vector<int64_t> generated;                     // the tokens of the steps
  // Scores [vocab] after the last token of the context and after the last step.
  at::Tensor first_scores, last_scores;
  // Of the timed attention calls: relative error of a head's output against float64.
  double attention_error = 0;
};

// Loss of each token given all before it, summed over tokens from position `from` on.
struct TextResult {
  struct Text {
    double nll = 0;  // nats, summed
    int64_t tokens = 0;
    // The same sum in pieces of up to kLossBlock tokens: what an interval is resampled from.
    std::vector<double> blocks;
  };
  std::vector<Text> texts;
  double prefill_ms = 0;  // median over texts: the passes alone, without the output layer
  int64_t kv_bytes = 0;   // allocated at the end of the longest text
  Latency latency;        // with `timed_steps`

  double nll() const;  // nats a token
  double perplexity() const;
};

inline constexpr int64_t kScoredFrom = 512;
inline constexpr int64_t kLossBlock = 128;

// `texts` are token windows, each run on a new state. Texts no longer than `from` are refused
// (UsageError). `timed_steps`: the last so many tokens of the first text go through the model one
// at a time, and are timed (Latency, at the context before them).
TextResult measure_text(const Decoder& model, const std::vector<Tokens>& texts,
                        const Setting& setting, int64_t from = kScoredFrom,
                        Progress& progress = no_progress(), int timed_steps = 0);

// One question, asked on a fork of the state that has read its document. Teacher forcing: a hit is
// when every token of the answer has the highest score given the true ones before it.
struct NeedleResult {
  bool hit = false;
  double nll = 0;  // of the answer's tokens, summed
  double depth = 0;
  int64_t length = 0;  // tokens of the document
  int64_t document = 0;
  double right = 0;  // share of the answer's tokens that have the highest score
};

// All questions of all documents, in their order. A document may be empty, a question has a token.
std::vector<NeedleResult> measure_needles(const Decoder& model,
                                          const std::vector<data::NeedleDocument>& documents,
                                          const Setting& setting,
                                          Progress& progress = no_progress());

// The needle wording that the dense model answers best, tried on one document of at most 1024
// tokens each: recall that is not there cannot be lost, and models differ in what they answer.
int best_wording(const Decoder& model, const data::RecallGenerator& generator, int64_t context);

double recall_of(const std::vector<NeedleResult>& results);
double answer_nll_of(const std::vector<NeedleResult>& results);  // mean nats an answer
// Mean probability of the whole answer: what recall would be on average if tokens were sampled.
// Moves where exact match does not yet.
double expected_recall_of(const std::vector<NeedleResult>& results);

// Something measured under a plan over the same of the dense model, with the 95% interval of a
// paired bootstrap over the items (2000 resamples, seeded). All 0 where dense has nothing.
struct Ratio {
  double value = 0, low = 0, high = 0;
};
// sum(plan) / sum(dense), item by item in the same order.
Ratio paired_ratio(std::span<const double> plan, std::span<const double> dense, uint64_t seed = 0);
// Of recall, over needles.
Ratio recall_ratio(const std::vector<NeedleResult>& plan, const std::vector<NeedleResult>& dense,
                   uint64_t seed = 0);
// Of perplexity, over blocks of losses; the texts are the same.
Ratio perplexity_ratio(std::span<const TextResult::Text> plan,
                       std::span<const TextResult::Text> dense, uint64_t seed = 0);

Latency measure_latency(const Decoder& model, std::span<const int64_t> tokens,
                        const Setting& setting, int steps = 16);

// Largest resident set of this process so far, bytes.
int64_t peak_memory();

// `count` windows of `length` tokens, evenly spread over the corpus, none overlapping another.
// Throws UsageError naming how many tokens there are when they do not fit.
std::vector<Tokens> spread_windows(const data::Corpus& corpus, int64_t count, int64_t length);

}  // namespace heed::eval
