// Chooses a program for every KV head under a cache budget.
//
// 1. Score all heads and windows at once, on real text and on the answers to needle questions
//    (score.h): text alone does not see retrieval, retrieval alone does not set windows.
// 2. Allocate by an integer program (allocate.h) over a weighted sum of both, for a few weights,
//    and run each joint allocation on text and needles that the scores have not seen.
// 3. Repair greedily: score the answers again around the best allocation. There the first-order
//    term is no longer zero and says which heads the answers now miss (single heads around the
//    dense model do not show what they do for one another). Give the first of them the full cache,
//    let the integer program pay for it, keep what measures better, go on to the next.
//
// The objective of a joint candidate is the worst of
//   T / 0.005,  A / 0.03,  C / 0.03
// and a tenth of their sum: T = ln(perplexity ratio), A = the share of expected recall that is
// lost, C = nats a token of copied passages, each not below 0.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cache/plan/plan_file.h"
#include "data/records.h"
#include "eval/measure.h"
#include "plan/allocate.h"
#include "plan/score.h"

namespace heed::plan {

// What a search may look at. Nothing of it may be used to evaluate the plan.
struct SearchData {
  std::vector<Sample> texts, needles, copies;  // scored
  std::vector<eval::Tokens> check_texts;       // joint candidates are run on these
  std::vector<data::NeedleDocument> check_needles;
  std::vector<Sample> check_copies;
};
// `scored` texts and as many needle documents, `checked` of each for joint candidates, all of
// `context` tokens, from disjoint stretches of the corpus.
SearchData make_search_data(const data::RecallGenerator& generator, const data::Corpus& corpus,
                            int64_t context, int64_t scored, int64_t checked, uint64_t seed);

struct Measured {
  double nll = 0;         // nats a token of text
  double copy_nll = 0;    // nats a token of a copied passage
  double answer_nll = 0;  // nats an answer
  double recall = 0;
  double expected_recall = 0;  // mean probability of a whole answer
};

struct Candidate {
  std::string how;
  Programs programs;
  Measured measured;
  double objective = 0;
};
Json to_json(const Candidate& candidate);  // without the programs

struct SearchOptions {
  Grid grid;
  std::vector<int64_t> lengths;  // declared lengths; the budget holds at each
  at::ScalarType kv_dtype = at::kHalf;
  int candidates = 3;      // joint allocations measured before the repair; at most 10 with it
  int repairs = 4;         // heads tried in the repair
  bool text_only = false;  // allocate by the loss of text alone
  // Also measures each head alone at three windows on the needle questions, and lets that score
  // stand beside the second-order one: 3 x heads runs.
  bool measure_heads_alone = false;
  data::Records* records = nullptr;  // keeps the dense scores for another budget
};

// Expected changes of a loss by windows [layer][KV head][option], and by keys and values in few
// bits [layer][KV head][number of bits].
struct Losses {
  std::vector<double> windows, keys, values;
  void add(const Losses& other, double weight);
};

class Search {
 public:
  Search(const Decoder& model, SearchData data, SearchOptions options,
         Progress& progress = no_progress());

  // Programs whose bytes are at most `budget` (0..1] of the dense cache's in 16 bits at every
  // declared length. 1 gives the dense model. Throws UsageError for a budget below the grid's
  // least. `repairs` in place of the options'.
  Candidate find(double budget) { return find(budget, options_.repairs); }
  Candidate find(double budget, int repairs);

  const Measured& dense() const { return dense_; }
  const Scores& text_scores() const { return text_; }
  const Scores& needle_scores() const { return needle_; }
  // All joint candidates of the last find(), in the order in which they were run.
  const std::vector<Candidate>& tried() const { return tried_; }

 private:
  Measured measure(const Programs* programs);
  Scores scored(const std::string& name, const std::vector<Sample>& samples);
  // `kept_full`: flat indices layer * heads + head that stay full.
  Programs allocated(const Losses& losses, double budget,
                     const std::set<int64_t>& kept_full = {}) const;
  // All programs of a head, with what they cost.
  std::vector<std::pair<HeadProgram, Option>> options_of(int64_t layer, int64_t head,
                                                         bool keep_full,
                                                         const Losses& losses) const;
  Losses losses_of(const Scores& scores) const;
  // Expected recall lost when a head alone is windowed, measured, in the shape of Scores; windows
  // between the measured ones by interpolation over the logarithm of the length.
  std::vector<double> heads_alone();
  // Step 3 above, from `start`; `losses` as for allocated().
  void repair(Candidate start, const Losses& losses, double budget, int tries);
  Candidate& run(std::string how, const Programs& programs);

  const Decoder& model_;
  SearchData data_;
  SearchOptions options_;
  Progress& progress_;
  Measured dense_;
  Scores text_, needle_, copy_;
  Centres centres_;
  std::vector<Candidate> tried_;
};

// Published rules, by the same budget. kBits: one number of bits for keys and values of all heads.
enum class Method { kHeed, kText, kDuo, kRazor, kUniform, kBits };
Method method_from_name(const std::string& name);  // UsageError naming the known ones

// Full caches for the heads with the highest `score` [layer][KV head], sinks + window for the rest:
// as many full heads as the budget allows at every length.
Programs keep_top(const Decoder& model, const std::vector<std::vector<double>>& score,
                  const HeadProgram& rest, const std::vector<int64_t>& lengths, double budget);
// RazorAttention (arXiv 2407.15891): full for the heads in the top `share` by induction or the top
// 1% by echo, as far as the budget allows; the rest keep sinks + the window that the remaining
// budget gives, and the mean of what they dropped; the first pass is dense, as in the paper.
Programs razor_plan(const Decoder& model, const std::vector<std::vector<double>>& induction,
                    const std::vector<std::vector<double>>& echo, int64_t sinks,
                    const std::vector<int64_t>& lengths, double budget, double share = 0.14);
// The most bits for all heads that the budget allows. Throws UsageError below two bits.
Programs bits_plan(const Decoder& model, int64_t exact, const std::vector<int64_t>& lengths,
                   double budget);
// One window for all heads.
Programs uniform_plan(const Decoder& model, int64_t sinks, const std::vector<int64_t>& lengths,
                      double budget);
// The programs of `plan` dealt to heads at random: the control of a plan.
Programs shuffled(const Programs& plan, uint64_t seed);

// Gates of DuoAttention (arXiv 2410.10819), [layer][KV head] in [0, 1]: trained by AdamW on needle
// samples so that a mixture a full + (1 - a) streaming keeps the dense model's last hidden state at
// the answers, with an L1 cost.
struct GateOptions {
  int steps = 40;
  double rate = 0.02, cost = 0.05;
  int64_t sinks = 128, window = 256;
};
std::vector<std::vector<double>> train_gates(const Decoder& model,
                                             const std::vector<Sample>& samples,
                                             const GateOptions& options,
                                             Progress& progress = no_progress());

// Bytes kept by `programs` over those of the dense cache in 16 bits, at `length`. For a model that
// slides by itself dense means its own window.
double budget_of(const Decoder& model, const Programs& programs, int64_t length);
Programs full_programs(const Decoder& model);

// The plan file's form: one program for each distinct rule, named "full" or "window-SINKS-LENGTH".
Plan to_plan(const Decoder& model, const Programs& programs, const std::vector<int64_t>& lengths,
             Json provenance);

}  // namespace heed::plan
