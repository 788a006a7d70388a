#include "report/evaluation.h"

#include <algorithm>
#include <cmath>

namespace heed::report {

double round_to(double value, int digits) {
  const double unit = std::pow(10.0, digits);
  return std::round(value * unit) / unit;
}

EvaluationData make_evaluation_data(const data::RecallGenerator& generator,
                                    const data::Corpus& corpus, int64_t context, int64_t texts,
                                    int64_t documents, int64_t needles, uint64_t seed) {
  EvaluationData data;
  data.texts = eval::spread_windows(corpus, texts, context);
  data::Random random(seed, 0xe7a1);
  for (int64_t n = 0; n < documents; ++n) {
    data.needles.push_back(generator.needles(context - 64, needles, random, context));
  }
  return data;
}

Evaluation evaluate(const Decoder& model, const EvaluationData& data, const Programs* programs,
                    at::ScalarType kv_dtype, std::vector<eval::NeedleResult>& dense_needles,
                    Progress& progress) {
  eval::Setting setting;
  setting.programs = programs;
  setting.kv_dtype = kv_dtype;
  Evaluation result;
  result.programs = programs ? *programs : plan::full_programs(model);
  const int64_t length = static_cast<int64_t>(data.texts.at(0).size());
  result.kept = plan::budget_of(model, result.programs, length);
  const auto text =
      eval::measure_text(model, data.texts, setting, std::min(eval::kScoredFrom, length / 2),
                         progress, data.decode_steps);
  result.perplexity = text.perplexity();
  result.texts = text.texts;
  result.prefill_ms = text.prefill_ms;
  const auto needles = eval::measure_needles(model, data.needles, setting, progress);
  if (!programs) dense_needles = needles;
  result.needles = needles;
  result.recall = eval::recall_of(needles);
  result.answer_nll = eval::answer_nll_of(needles);
  if (!dense_needles.empty()) result.recall_ratio = eval::recall_ratio(needles, dense_needles);
  const auto& latency = text.latency;
  result.decode_ms = latency.decode_ms;
  result.attention_ms = latency.attention_ms;
  result.first_token_ms = latency.first_token_ms;
  result.kv_bytes = latency.kv_bytes;
  result.kv_formula = latency.kv_formula;
  return result;
}

Json to_json(const eval::Ratio& ratio) {
  return {{"value", ratio.value}, {"low", ratio.low}, {"high", ratio.high}};
}

Json to_json(const Evaluation& e) {
  return {{"method", e.method},
          {"budget", e.budget},
          {"kept", round_to(e.kept, 4)},
          {"perplexity", e.perplexity},
          {"recall", e.recall},
          {"recall_ratio", to_json(e.recall_ratio)},
          {"answer_nll", e.answer_nll},
          {"prefill_ms", round_to(e.prefill_ms, 2)},
          {"first_token_ms", round_to(e.first_token_ms, 2)},
          {"decode_ms", round_to(e.decode_ms, 3)},
          {"attention_ms", round_to(e.attention_ms, 4)},
          {"kv_bytes", e.kv_bytes},
          {"kv_formula", e.kv_formula}};
}

}  // namespace heed::report
