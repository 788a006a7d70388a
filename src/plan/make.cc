#include "plan/make.h"

#include <algorithm>

#include "io/error.h"
#include "probe/figures.h"

namespace heed::plan {
namespace {

const char* name_of(Method method) {
  switch (method) {
    case Method::kHeed:
      return "heed";
    case Method::kText:
      return "text";
    case Method::kDuo:
      return "duo";
    case Method::kRazor:
      return "razor";
    case Method::kUniform:
      return "uniform";
    case Method::kBits:
      return "bits";
  }
  return "";
}

SearchOptions search_options(const MakeOptions& options, int64_t context) {
  SearchOptions search;
  search.grid = default_grid(context, options.sinks);
  if (!options.windows.empty()) {
    search.grid.windows = options.windows;
    std::sort(search.grid.windows.begin(), search.grid.windows.end());
  }
  search.grid.bits = options.bits;
  search.lengths = options.lengths;
  return search;
}

}  // namespace

Made make_plan(const eval::Workbench& bench, const std::vector<std::string>& files,
               const MakeOptions& asked, Progress& progress) {
  MakeOptions options = asked;
  if (options.lengths.empty()) options.lengths = {eval::usual_length(bench.model)};
  const int64_t context = *std::max_element(options.lengths.begin(), options.lengths.end());
  if (context > bench.model.context()) {
    throw UsageError("--lengths {}: the model was made for {} tokens", context,
                     bench.model.context());
  }
  const auto& model = bench.model;
  Made made;
  made.length = context;
  Json provenance = {{"method", name_of(options.method)}, {"budget", options.budget}};
  if (options.budget == 1) {
    made.programs = full_programs(model);
  } else if (options.method == Method::kUniform) {
    made.programs = uniform_plan(model, options.sinks, options.lengths, options.budget);
  } else if (options.method == Method::kBits) {
    made.programs = bits_plan(model, options.sinks, options.lengths, options.budget);
  } else {
    const auto corpus = eval::open_text(bench, files);
    data::RecallGenerator generator(corpus, bench.codec);
    generator.use_wording(eval::best_wording(model, generator, context));
    const int64_t scored = options.thorough ? std::max<int64_t>(options.texts, 8) : options.texts;
    if (options.method == Method::kRazor) {
      auto inputs = probe::make_inputs(generator, corpus, context, options.texts, options.seed);
      inputs.texts.resize(1);
      inputs.needles.clear();
      inputs.importance = false;
      const auto figures = probe::measure_heads(model, inputs, progress);
      made.programs =
          razor_plan(model, figures.per_kv_head(model, [](const auto& f) { return f.repeat; }),
                     figures.per_kv_head(model, [](const auto& f) { return f.echo; }),
                     options.sinks, options.lengths, options.budget);
    } else if (options.method == Method::kDuo) {
      auto data = make_search_data(generator, corpus, context, scored, 1, options.seed);
      GateOptions gates;
      gates.steps = options.steps;
      const auto trained = train_gates(model, data.needles, gates, progress);
      provenance["gates"] = trained;
      made.programs =
          keep_top(model, trained, HeadProgram{256, 64}, options.lengths, options.budget);
    } else {
      std::unique_ptr<data::Records> records;
      if (!options.records.empty()) records = std::make_unique<data::Records>(options.records);
      SearchOptions search = search_options(options, context);
      search.kv_dtype = options.kv_dtype;
      search.candidates = options.thorough ? std::max(options.candidates, 6) : options.candidates;
      search.repairs = options.thorough ? std::max(options.repairs, 6) : options.repairs;
      search.text_only = options.method == Method::kText;
      search.measure_heads_alone = options.thorough;
      search.records = records.get();
      Search searching(model,
                       make_search_data(generator, corpus, context, scored,
                                        options.thorough ? std::max<int64_t>(options.checks, 12)
                                                         : options.checks,
                                        options.seed),
                       search, progress);
      const auto found = searching.find(options.budget);
      made.programs = found.programs;
      Json tried = Json::array();
      for (const auto& candidate : searching.tried()) tried.push_back(to_json(candidate));
      provenance["how"] = found.how;
      provenance["candidates"] = tried;
      provenance["dense"] = {{"nll", searching.dense().nll},
                             {"answer_nll", searching.dense().answer_nll},
                             {"recall", searching.dense().recall}};
    }
  }
  made.kept = budget_of(model, made.programs, context);
  provenance["kept"] = made.kept;
  made.plan = to_plan(model, made.programs, options.lengths, std::move(provenance));
  return made;
}

}  // namespace heed::plan
