// See cells.h.
#include "report/cells.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "report/evaluation.h"

namespace heed::report {
namespace {

using Texts = std::vector<eval::TextResult::Text>;

double perplexity_of(const Texts& texts) {
  eval::TextResult all;
  all.texts = texts;
  return all.perplexity();
}

// One kind's results, question by question.
struct Answers {
  std::vector<double> exact, tokens;
  void add(const eval::NeedleResult& result) {
    exact.push_back(result.hit);
    tokens.push_back(result.right);
  }
  Json score() const { return {{"exact", mean(exact)}, {"tokens", mean(tokens)}}; }
  static double mean(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return values.empty() ? 0 : sum / static_cast<double>(values.size());
  }
};

Json named(const std::string& name, const Json& ratio) {
  Json out = ratio;
  out["name"] = name;
  return out;
}

std::string interval(const Json& ratio, int digits) {
  return fmt::format("{:.{}f} [{:.{}f}, {:.{}f}]", ratio.at("value").get<double>(), digits,
                     ratio.at("low").get<double>(), digits, ratio.at("high").get<double>(), digits);
}

}  // namespace

Json text_cells(const std::vector<std::string>& names, const Texts& dense, const Texts* plan) {
  Json cells = Json::array();
  for (size_t first = 0; first < names.size();) {
    size_t last = first;
    while (last < names.size() && names[last] == names[first]) ++last;
    const auto part = [&](const Texts& all) {
      return Texts(all.begin() + static_cast<int64_t>(first),
                   all.begin() + static_cast<int64_t>(last));
    };
    Json cell = {{"name", names[first]}, {"dense", perplexity_of(part(dense))}};
    if (plan) {
      cell["plan"] = perplexity_of(part(*plan));
      cell["ratio"] = to_json(eval::perplexity_ratio(part(*plan), part(dense)));
    }
    cells.push_back(std::move(cell));
    first = last;
  }
  return cells;
}

Json task_cells(const std::vector<data::NeedleDocument>& documents,
                const std::vector<eval::NeedleResult>& dense,
                const std::vector<eval::NeedleResult>* plan) {
  struct Kind {
    Answers dense, plan;
    double chance = 0;  // summed
  };
  std::map<std::string, Kind> kinds;
  size_t n = 0;
  for (const auto& document : documents) {
    for (const auto& needle : document.needles) {
      Kind& kind = kinds[needle.kind];
      kind.dense.add(dense.at(n));
      if (plan) kind.plan.add(plan->at(n));
      kind.chance += needle.chance;
      ++n;
    }
  }
  Json cells = Json::object();
  for (const auto& [name, kind] : kinds) {
    const double count = static_cast<double>(kind.dense.exact.size());
    const double exact = Answers::mean(kind.dense.exact), chance = kind.chance / count;
    Json cell = {{"n", kind.dense.exact.size()},
                 {"chance", chance},
                 {"discriminative", exact >= std::max(kDiscriminative, 2 * chance)},
                 {"dense", kind.dense.score()}};
    if (plan) {
      cell["plan"] = kind.plan.score();
      cell["ratio"] = {
          {"exact", to_json(eval::paired_ratio(kind.plan.exact, kind.dense.exact))},
          {"tokens", to_json(eval::paired_ratio(kind.plan.tokens, kind.dense.tokens))}};
    }
    cells[name] = std::move(cell);
  }
  return cells;
}

Json headline(const Json& texts, const Json& tasks) {
  Json out = {{"kind", nullptr}, {"text", nullptr}};
  Json mean = {{"exact", nullptr}, {"perplexity", nullptr}};
  double exact = 0, logs = 0;
  int kinds = 0;
  for (const auto& [name, cell] : tasks.items()) {
    if (!cell.at("discriminative").get<bool>()) continue;
    const Json& ratio = cell.at("ratio").at("exact");
    // Where two have lost as much, the one that is less sure.
    const auto order = [](const Json& r) { return std::pair(r.at("value"), r.at("low")); };
    if (kinds++ == 0 || order(ratio) < order(out["kind"])) out["kind"] = named(name, ratio);
    exact += ratio.at("value").get<double>();
  }
  for (const auto& cell : texts) {
    const Json& ratio = cell.at("ratio");
    if (out["text"].is_null() || ratio.at("value") > out["text"].at("value")) {
      out["text"] = named(cell.at("name"), ratio);
    }
    logs += std::log(ratio.at("value").get<double>());
  }
  if (kinds > 0) mean["exact"] = exact / kinds;
  if (!texts.empty()) mean["perplexity"] = std::exp(logs / static_cast<double>(texts.size()));
  out["mean"] = std::move(mean);
  out["kinds"] = kinds;
  return out;
}

std::string cells_table(const Json& texts, const Json& tasks) {
  std::string out = fmt::format("  {:<24} {:>10} {:>10}   {}\n", "perplexity", "dense", "plan",
                                "plan / dense, 95% interval");
  for (const auto& cell : texts) {
    out += fmt::format("  {:<24} {:>10.3f}", cell.at("name").get<std::string>(),
                       cell.at("dense").get<double>());
    if (cell.contains("plan")) {
      out += fmt::format(" {:>10.3f}   x{}", cell.at("plan").get<double>(),
                         interval(cell.at("ratio"), 4));
    }
    out += "\n";
  }
  if (tasks.empty()) return out;
  out += fmt::format("  {:<18} {:>5} {:>10} {:>10}   {}\n", "exact (tokens)", "n", "dense", "plan",
                     "exact, plan / dense, 95% interval");
  for (const auto& [name, cell] : tasks.items()) {
    const auto score = [&](const char* who) {
      if (!cell.contains(who)) return std::string();
      return fmt::format("{:.2f} ({:.2f})", cell.at(who).at("exact").template get<double>(),
                         cell.at(who).at("tokens").template get<double>());
    };
    out += fmt::format("  {:<18} {:>5} {:>11} {:>11}", name, cell.at("n").get<int64_t>(),
                       score("dense"), score("plan"));
    const bool some = cell.at("dense").at("exact").get<double>() > 0;
    if (cell.contains("ratio")) {
      out += fmt::format("  {:<18}", some ? interval(cell.at("ratio").at("exact"), 2) : "-");
    }
    if (!cell.at("discriminative").get<bool>()) out += "  not discriminative";
    out += "\n";
  }
  return out;
}

std::string headline_text(const Json& headline) {
  std::string out = "  worst kind ";
  const Json &kind = headline.at("kind"), &text = headline.at("text"), &mean = headline.at("mean");
  out += kind.is_null()
             ? std::string("none: no kind is discriminative")
             : fmt::format("{} {}", kind.at("name").get<std::string>(), interval(kind, 2));
  if (!text.is_null()) {
    out +=
        fmt::format(", worst text {} x{}", text.at("name").get<std::string>(), interval(text, 4));
  }
  if (!mean.at("exact").is_null()) {
    out += fmt::format("; mean of {} kinds {:.2f}", headline.at("kinds").get<int>(),
                       mean.at("exact").get<double>());
  }
  if (!mean.at("perplexity").is_null()) {
    out += fmt::format("{} of texts x{:.4f}", mean.at("exact").is_null() ? "; mean" : ",",
                       mean.at("perplexity").get<double>());
  }
  return out + "\n";
}

}  // namespace heed::report
