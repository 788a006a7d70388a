#include "report/eval_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "io/error.h"
#include "plan/search.h"
#include "report/evaluation.h"

namespace heed::report {
namespace {

constexpr int kDepths = 5;  // bins of needle depth

Json by_depth(const std::vector<eval::NeedleResult>& results) {
  std::array<std::pair<int, int>, kDepths> bins{};
  for (const auto& r : results) {
    auto& [hits, count] = bins[std::min(kDepths - 1, static_cast<int>(r.depth * kDepths))];
    hits += r.hit;
    ++count;
  }
  Json rows = Json::array();
  for (int b = 0; b < kDepths; ++b) {
    rows.push_back({{"from", b / double{kDepths}},
                    {"to", (b + 1) / double{kDepths}},
                    {"needles", bins[b].second},
                    {"recall", bins[b].second ? bins[b].first / double(bins[b].second) : 0.0}});
  }
  return rows;
}

}  // namespace

Json run_eval(const eval::Workbench& bench, const std::vector<std::string>& files,
              const Programs* plan, const EvalOptions& asked, Progress& progress) {
  EvalOptions options = asked;
  if (options.lengths.empty()) options.lengths = {eval::usual_length(bench.model)};
  const auto corpus = eval::open_text(bench, files);
  data::RecallGenerator generator(corpus, bench.codec);
  generator.use_wording(eval::best_wording(
      bench.model, generator, *std::min_element(options.lengths.begin(), options.lengths.end())));
  Json lengths = Json::array();
  for (int64_t length : options.lengths) {
    if (length > bench.model.context()) {
      throw UsageError("--lengths {}: the model was made for {} tokens", length,
                       bench.model.context());
    }
    auto data = make_evaluation_data(generator, corpus, length, options.texts, options.documents,
                                     options.needles, options.seed);
    data.decode_steps = options.decode_steps;
    data::Random random(options.seed, 0x5a3b1e);
    std::vector<data::RecallSample> lists, pairs;
    for (int64_t n = 0; n < options.samples; ++n) {
      lists.push_back(generator.key_value(length, std::min<int64_t>(32, length / 64), 4, random));
      pairs.push_back(
          generator.associative(length, std::min<int64_t>(32, length / 64), 16, random));
    }
    std::vector<eval::NeedleResult> dense_needles;
    const auto run = [&](const Programs* programs, const char* method) {
      Evaluation e =
          evaluate(bench.model, data, programs, options.kv_dtype, dense_needles, progress);
      e.method = method;
      e.budget = e.kept;
      Json json = to_json(e);
      json["by_depth"] = by_depth(e.needles);
      eval::Setting setting;
      setting.programs = programs;
      setting.kv_dtype = options.kv_dtype;
      json["key_value_recall"] = eval::measure_samples(bench.model, lists, setting, progress);
      json["associative_recall"] = eval::measure_samples(bench.model, pairs, setting, progress);
      return json;
    };
    Json row = {{"length", length}, {"needles", options.documents * options.needles}};
    row["dense"] = run(nullptr, "dense");
    if (plan) row["plan"] = run(plan, "plan");
    lengths.push_back(std::move(row));
  }
  return {{"model", {{"path", bench.path}, {"hash", bench.model.hash()}}},
          {"lengths", lengths},
          {"texts", options.texts},
          {"needle_wording", data::RecallGenerator::statement_of(generator.wording())},
          {"peak_memory", eval::peak_memory()}};
}

std::string eval_table(const Json& report) {
  std::string text =
      fmt::format("{:>7} {:<6} {:>11} {:>7} {:>16} {:>9} {:>11} {:>8} {:>11} {:>9} {:>9}\n",
                  "length", "", "perplexity", "recall", "of dense", "key-value", "associative",
                  "KV MiB", "first token", "decode", "attention");
  for (const auto& row : report.at("lengths")) {
    for (const char* who : {"dense", "plan"}) {
      if (!row.contains(who)) continue;
      const auto& e = row.at(who);
      const auto& q = e.at("recall_ratio");
      text += fmt::format(
          "{:>7} {:<6} {:>11.3f} {:>7.3f} {:>16} {:>9.3f} {:>11.3f} {:>8.1f} {:>9.0f}ms {:>7.2f}ms "
          "{:>7.3f}ms\n",
          row.at("length").get<int64_t>(), who, e.at("perplexity").get<double>(),
          e.at("recall").get<double>(),
          fmt::format("{:.2f} [{:.2f}, {:.2f}]", q.at("value").get<double>(),
                      q.at("low").get<double>(), q.at("high").get<double>()),
          e.at("key_value_recall").get<double>(), e.at("associative_recall").get<double>(),
          e.at("kv_bytes").get<double>() / (1 << 20), e.at("first_token_ms").get<double>(),
          e.at("decode_ms").get<double>(), e.at("attention_ms").get<double>());
    }
    text += fmt::format("{:>7} needles: {}; recall by depth, dense", "",
                        row.at("needles").get<int64_t>());
    for (const auto& bin : row.at("dense").at("by_depth")) {
      text += fmt::format(" {:.2f}", bin.at("recall").get<double>());
    }
    if (row.contains("plan")) {
      text += ", plan";
      for (const auto& bin : row.at("plan").at("by_depth")) {
        text += fmt::format(" {:.2f}", bin.at("recall").get<double>());
      }
    }
    text += "\n";
  }
  text += fmt::format("peak memory {:.2f} GB\n", report.at("peak_memory").get<double>() / 1e9);
  return text;
}

}  // namespace heed::report
