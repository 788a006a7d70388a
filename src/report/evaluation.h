// One setting of a model evaluated: the dense model, a plan or a control; perplexity, answers to
// questions, bytes and times, over one set of texts and documents.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/workbench.h"
#include "io/json.h"
#include "io/progress.h"
#include "plan/search.h"

namespace heed::report {

// One setting evaluated: the dense model, a plan or a control.
struct Evaluation {
  std::string method;
  double budget = 1;  // asked for
  double kept = 1;    // positions kept over dense, at the context
  Programs programs;
  double perplexity = 0, recall = 0, answer_nll = 0;
  std::vector<eval::TextResult::Text> texts;
  std::vector<eval::NeedleResult> needles;
  eval::Ratio recall_ratio;  // to dense
  double prefill_ms = 0, decode_ms = 0, attention_ms = 0, first_token_ms = 0;
  int64_t kv_bytes = 0, kv_formula = 0;
};

struct EvaluationData {
  std::vector<eval::Tokens> texts;
  std::vector<data::NeedleDocument> needles;
  int decode_steps = 16;
};
EvaluationData make_evaluation_data(const data::RecallGenerator& generator,
                                    const data::Corpus& corpus, int64_t context, int64_t texts,
                                    int64_t documents, int64_t needles, uint64_t seed);

// `programs` null: dense. `dense_needles` is filled by the dense run and compared with by the
// others.
Evaluation evaluate(const Decoder& model, const EvaluationData& data, const Programs* programs,
                    at::ScalarType kv_dtype, std::vector<eval::NeedleResult>& dense_needles,
                    Progress& progress = no_progress());
Json to_json(const Evaluation& evaluation);
Json to_json(const eval::Ratio& ratio);  // {value, low, high}
// Rounded to `digits` decimals: times and shares in reports.
double round_to(double value, int digits);

}  // namespace heed::report
