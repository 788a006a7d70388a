// What every attention head does, on real text and on the probes' own prompts, without any
// N x N map. With lse_i = ln sum_j exp(x_ij) of the head's full attention, for queries i >= `from`:
//
//   sink       mean_i of the weight on keys 0..3
//   local[w]   mean_i of the weight on the w nearest keys (the query's own among them)
//   entropy    mean_i of -sum_j a_ij ln a_ij, nats
//   peak       the largest mean weight that one key beyond the first four receives, and where
//   repeat     mean over the second copy of a passage of the weight on the key after the same
//   token's
//              first occurrence (induction; RazorAttention, arXiv 2407.15891)
//   echo       the same with the first occurrence itself
//   needle     share of answer steps at which the most attended key is the very token of the needle
//   that is
//              produced (retrieval score, arXiv 2404.15574, under teacher forcing)
//   importance mean over tokens of |<dLoss/do, o>|: first-order effect of removing the head's
//   output
//              (Michel et al., arXiv 1905.10650)
//
// Weights of key ranges are exp(lse_range - lse) with lse_range from the same kernel over that
// range; sum_j a_ij x_ij is scale q_i . (attention with the keys as values), which gives the
// entropy; column sums take a second pass over blocks of queries. Figures are per
// query head; a KV head's is the maximum of its group.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/recall.h"
#include "eval/measure.h"
#include "io/json.h"
#include "io/progress.h"
#include "model/decoder.h"

namespace heed::probe {

inline constexpr int64_t kSinkKeys = 4;
inline constexpr int64_t kLocalWindows[] = {1, 4, 16, 64, 256, 1024, 4096};

struct HeadFigures {
  double sink = 0, entropy = 0, peak = 0, repeat = 0, echo = 0, needle = 0, importance = 0;
  int64_t peak_position = 0;
  std::vector<double> local;  // by kLocalWindows, as far as the context reaches
  // The larger of repeat and needle: what ranks heads that need the whole context.
  double retrieval() const { return repeat > needle ? repeat : needle; }
};

struct Figures {
  int64_t context = 0, from = 0;
  std::vector<std::vector<HeadFigures>>
      heads;  // [layer][query head]; empty for layers without KV heads, and for other_weights
  // Layers with heads whose weights are no softmax of q.k alone (biases, sigmoid, soft caps): the
  // figures are not defined for them, or not measured yet.
  std::vector<int64_t> other_weights;
  // [layer][KV head]: maximum over the group of `figure`.
  std::vector<std::vector<double>> per_kv_head(const Decoder& model,
                                               double (*figure)(const HeadFigures&)) const;
};

struct FigureInputs {
  std::vector<eval::Tokens> texts;    // windows of real text, > `from` tokens each
  std::vector<eval::Tokens> repeats;  // a passage twice: length 2P, tokens[i+P] == tokens[i]
  std::vector<data::NeedleDocument> needles;
  bool importance = true;  // one backward pass a text
};

// Inputs of `context` tokens from a corpus, seeded.
FigureInputs make_inputs(const data::RecallGenerator& generator, const data::Corpus& corpus,
                         int64_t context, int64_t texts, uint64_t seed);

Figures measure_heads(const Decoder& model, const FigureInputs& inputs,
                      Progress& progress = no_progress());

// {context, from, heads[layer][head]{...}, definitions}.
Json to_json(const Figures& figures);
Json definitions();

}  // namespace heed::probe
