#include "report/eval_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <set>

#include "data/tasks.h"
#include "eval/task_file.h"
#include "io/error.h"
#include "report/cells.h"
#include "report/evaluation.h"

namespace heed::report {
namespace {

// Exact share by where in the document the answer stands.
Json by_depth(const std::vector<eval::NeedleResult>& results) {
  constexpr int kDepths = 5;
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

// What is measured at one length, beside the file's own tasks.
struct Material {
  EvaluationData data;
  std::vector<std::string> names;      // of each text
  std::vector<std::string> too_short;  // kinds whose tasks do not fit
};

struct Source {
  std::string name;
  data::Corpus corpus;
};

std::vector<Source> open_sources(const eval::Workbench& bench,
                                 const std::vector<NamedFile>& files) {
  std::set<std::string> names;
  for (const NamedFile& file : files) {
    if (!names.insert(file.name).second) {
      throw UsageError("--data: two files are called {}; each needs a name of its own", file.name);
    }
  }
  std::vector<Source> sources;
  for (const NamedFile& file : files) {
    sources.push_back({file.name, eval::open_text(bench, {file.path})});
  }
  return sources;
}

// Kinds that share their documents, in the order of the table.
std::vector<std::vector<const data::TaskKind*>> grouped(const std::vector<std::string>& asked) {
  for (const std::string& name : asked) {
    if (data::find_task(name).split != data::Split::kEvaluation) {
      throw UsageError("--kinds {}: is a kind that plans are searched on, not evaluated on", name);
    }
  }
  std::vector<std::vector<const data::TaskKind*>> groups;
  for (const data::TaskKind& kind : data::task_kinds(data::Split::kEvaluation)) {
    if (!asked.empty() && std::find(asked.begin(), asked.end(), kind.name) == asked.end()) continue;
    if (groups.empty() || groups.back()[0]->together != kind.together) groups.emplace_back();
    groups.back().push_back(&kind);
  }
  return groups;
}

Material make_material(const eval::Workbench& bench, const std::vector<Source>& sources,
                       int64_t length, const EvalOptions& options) {
  Material material;
  for (const Source& source : sources) {
    for (auto& text : eval::spread_windows(source.corpus, options.texts, length)) {
      material.data.texts.push_back(std::move(text));
      material.names.push_back(source.name);
    }
  }
  material.data.decode_steps = options.decode_steps;
  if (!options.tasks.empty()) return material;
  std::vector<data::TaskGenerator> generators;
  for (const Source& source : sources) {
    generators.emplace_back(source.corpus, bench.codec, eval::begin_of(bench.tokenizer));
  }
  uint64_t stream = 0xe7a1;
  for (const auto& kinds : grouped(options.kinds)) {
    data::Random random(options.seed, ++stream);
    for (int64_t d = 0; d < options.documents; ++d) {
      // The filler is of every text in turn.
      const auto& generator = generators[static_cast<size_t>(d) % generators.size()];
      auto document = generator.document(kinds, length, options.questions, random);
      if (!document) {
        for (const auto* kind : kinds) material.too_short.emplace_back(kind->name);
        break;
      }
      material.data.needles.push_back(std::move(*document));
    }
  }
  return material;
}

eval::Setting setting_of(const Programs* programs, const EvalOptions& options) {
  eval::Setting setting;
  setting.programs = programs;
  setting.kv_dtype = options.kv_dtype;
  return setting;
}

// The cells of a user's own tasks, which are the same at every length.
Json own_tasks(const eval::Workbench& bench, const Programs* plan, const EvalOptions& options,
               Progress& progress) {
  const auto documents = eval::read_tasks(options.tasks, bench);
  const auto dense =
      eval::measure_needles(bench.model, documents, setting_of(nullptr, options), progress);
  if (!plan) return task_cells(documents, dense, nullptr);
  const auto under_plan =
      eval::measure_needles(bench.model, documents, setting_of(plan, options), progress);
  return task_cells(documents, dense, &under_plan);
}

Json measure_length(const eval::Workbench& bench, const Material& material, const Programs* plan,
                    const EvalOptions& options, const Json& own, Progress& progress) {
  std::vector<eval::NeedleResult> dense_needles;
  const auto run = [&](const Programs* programs, const char* method) {
    Evaluation e =
        evaluate(bench.model, material.data, programs, options.kv_dtype, dense_needles, progress);
    e.method = method;
    e.budget = e.kept;
    return e;
  };
  const Evaluation dense = run(nullptr, "dense");
  std::optional<Evaluation> other;
  if (plan) other = run(plan, "plan");
  Json row = {{"kv_bytes", {{"dense", dense.kv_bytes}}}, {"dense", to_json(dense)}};
  row["texts"] = text_cells(material.names, dense.texts, other ? &other->texts : nullptr);
  row["tasks"] = own.is_null() ? task_cells(material.data.needles, dense.needles,
                                            other ? &other->needles : nullptr)
                               : own;
  if (other) {
    row["kv_bytes"]["plan"] = other->kv_bytes;
    row["plan"] = to_json(*other);
    row["headline"] = headline(row["texts"], row["tasks"]);
  }
  if (own.is_null()) {
    row["dense"]["by_depth"] = by_depth(dense.needles);
    if (other) row["plan"]["by_depth"] = by_depth(other->needles);
  }
  if (!material.too_short.empty()) row["too_short_for"] = material.too_short;
  return row;
}

}  // namespace

NamedFile named_file(const std::string& path, const std::string& shown) {
  std::filesystem::path name = std::filesystem::path(shown).filename();
  if (name.extension() == ".xz") name = name.stem();
  return {path, name.stem().string()};
}

Json run_eval(const eval::Workbench& bench, const std::vector<NamedFile>& files,
              const Programs* plan, const EvalOptions& asked, Progress& progress) {
  EvalOptions options = asked;
  if (options.lengths.empty()) options.lengths = {eval::usual_length(bench.model)};
  for (const int64_t length : options.lengths) {
    if (length > bench.model.context()) {
      throw UsageError("--lengths {}: the model was made for {} tokens", length,
                       bench.model.context());
    }
  }
  const auto sources = open_sources(bench, files);
  Json lengths = Json::array(), own = nullptr;
  if (!options.tasks.empty()) own = own_tasks(bench, plan, options, progress);
  for (const int64_t length : options.lengths) {
    const Material material = make_material(bench, sources, length, options);
    Json row = measure_length(bench, material, plan, options, own, progress);
    row["length"] = length;
    lengths.push_back(std::move(row));
  }
  Json report = {{"model", {{"path", bench.path}, {"hash", bench.model.hash()}}},
                 {"peak_memory", eval::peak_memory()}};
  if (lengths.size() == 1) {
    for (const char* key : {"texts", "tasks", "kv_bytes"}) report[key] = lengths[0].at(key);
  }
  report["lengths"] = std::move(lengths);
  return report;
}

std::string eval_table(const Json& report) {
  std::string text;
  for (const auto& row : report.at("lengths")) {
    text += fmt::format("{} tokens\n", row.at("length").get<int64_t>());
    text += cells_table(row.at("texts"), row.at("tasks"));
    if (row.contains("too_short_for")) {
      text += "  too short for";
      for (const auto& kind : row.at("too_short_for")) text += " " + kind.get<std::string>();
      text += "\n";
    }
    if (row.contains("headline")) text += headline_text(row.at("headline"));
    for (const char* who : {"dense", "plan"}) {
      if (!row.contains(who)) continue;
      const auto& e = row.at(who);
      text += fmt::format(
          "  {:<5} KV {:.1f} MiB, first token {:.0f} ms, a token {:.2f} ms, of that attention "
          "{:.3f} ms\n",
          who, e.at("kv_bytes").get<double>() / (1 << 20), e.at("first_token_ms").get<double>(),
          e.at("decode_ms").get<double>(), e.at("attention_ms").get<double>());
    }
  }
  text += fmt::format("peak memory {:.2f} GB\n", report.at("peak_memory").get<double>() / 1e9);
  return text;
}

}  // namespace heed::report
