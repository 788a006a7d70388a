// What it costs the model's loss to give a head a smaller window, for all heads and windows at
// once, from one forward and one backward pass a sample.
//
// Let y be a KV head's output (all query heads of its group) as the model runs now, y_p its output
// under program p, and g = dLoss/dy. To second order, with the Fisher matrix in place of the
// Hessian and tokens and heads taken as independent, replacing y by y_p changes the loss by
//
//   sum_t <g_t, y_p,t - y_t>  +  1/2 sum_t <g_t, y_p,t - y_t>^2
//
// The first term is zero in expectation where the model is at its optimum (dense), and is the
// signal where it is not (at a plan); the second is what a change away from the optimum costs. MoA
// (arXiv 2406.14909) uses the first alone, with absolute values, from the map of all weights; here
// the windows' outputs come from the attention kernel itself and no N x N map is kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache/plan/bits.h"
#include "cache/program.h"
#include "data/recall.h"
#include "eval/measure.h"
#include "io/json.h"
#include "io/progress.h"
#include "model/decoder.h"

namespace heed::plan {

// The programs that a head may run: sinks + one of these windows (ascending), or the full cache;
// and its keys, and its values, in one of these numbers of bits, or all 16.
struct Grid {
  int64_t sinks = 16;  // exact beside few bits, in the full cache too
  std::vector<int64_t> windows;
  std::vector<int> bits;  // descending, below 16; empty: all heads keep 16

  int64_t options() const { return static_cast<int64_t>(windows.size()) + 1; }
  // Option p, the last being full.
  HeadProgram program(int64_t p) const {
    return p < static_cast<int64_t>(windows.size()) ? HeadProgram{windows[p], sinks}
                                                    : HeadProgram{};
  }
};
// Windows 32, 48, 64, 96, ...: powers of two below `context`, and their midpoints up to a quarter
// of it (long windows are what scoring costs most).
Grid default_grid(int64_t context, int64_t sinks);

// A sequence and the positions whose next token counts.
struct Sample {
  eval::Tokens tokens;
  std::vector<int64_t> rows;  // row t scores tokens[t + 1]
  // Answers that count as a whole: answer n is rows[answers[n]] .. rows[answers[n + 1] - 1], and
  // its loss weighs p, the probability that the dense model gives it (at least 0.1): -p grad(log p)
  // is the gradient of expected recall, to which an answer that is lost anyway adds nothing. Empty:
  // every row weighs 1.
  std::vector<int64_t> answers;
};
Sample text_sample(const eval::Tokens& text, int64_t from = eval::kScoredFrom);
// A document with its questions and answers appended, as far as `limit` tokens reach; rows are
// those of the answers.
// A text that ends with copies of passages of itself, of 60 to 240 tokens, as far as `text` has
// room for them (twice the longest at least); rows are those of the copies, their first tokens left
// out.
Sample copy_sample(const eval::Tokens& text, data::Random& random);
Sample needle_sample(const data::NeedleDocument& document, int64_t limit);

// Sums over samples, by [layer][KV head][option] (flattened), and how many rows they hold.
struct Scores {
  int64_t layers = 0, heads = 0, options = 0, bits = 0;
  int64_t rows = 0;
  double loss = 0;  // of the rows, summed, as they weigh
  std::vector<double> linear, quadratic;
  // The same of keys, and of values, alone in few bits, by [layer][KV head][number of bits]:
  // squares.
  std::vector<double> keys, values;
  // [layer][query head], mean over tokens and samples of |<g, y>| of one query head's output: what
  // `heed inspect` calls importance.
  std::vector<double> importance;

  size_t index(int64_t layer, int64_t head, int64_t option) const {
    return static_cast<size_t>((layer * heads + head) * options + option);
  }
  size_t bits_index(int64_t layer, int64_t head, int64_t bit) const {
    return static_cast<size_t>((layer * heads + head) * bits + bit);
  }
  // The expected change of the loss a row.
  double change(int64_t layer, int64_t head, int64_t option, bool with_linear) const;
};

// Scores around the model as it runs under `at` (null: dense). Layers with another mixer score 0.
// `centres` are taken off keys and values before they are kept in few bits; empty: nothing.
Scores score_heads(const Decoder& model, const std::vector<Sample>& samples, const Grid& grid,
                   const Programs* at, const Centres& centres = {},
                   Progress& progress = no_progress());

// The mean key and value of every head over samples, rows before `exact` left out, as float16
// holds them.
Centres measure_centres(const Decoder& model, const std::vector<Sample>& samples, int64_t exact,
                        Progress& progress = no_progress());

Json to_json(const Scores& scores);
Scores scores_from_json(const Json& json, const std::string& where);

}  // namespace heed::plan
