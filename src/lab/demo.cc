#include "lab/demo.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "cache/plan/plan_programs.h"
#include "cache/program.h"
#include "generate/generate.h"
#include "io/atomic_file.h"
#include "io/error.h"
#include "lab/kept.h"
#include "lab/steps.h"
#include "model/hub.h"
#include "op/attend.h"
#include "probe/figures.h"
#include "report/evaluation.h"
#include "report/html.h"

namespace heed::lab {
namespace fs = std::filesystem;
namespace {

// Weights of a few telling heads over a short stretch of text, for the report's highlighted text.
Json attention_sample(const eval::Workbench& bench, const probe::Figures& figures,
                      const eval::Tokens& text) {
  constexpr int64_t kTokens = 160;
  const auto& config = bench.model.config();
  const int64_t count = std::min<int64_t>(kTokens, static_cast<int64_t>(text.size()));
  struct Choice {
    const char* why;
    int64_t layer = -1, head = -1;
    double value = 0;
  };
  std::vector<Choice> choices{{"most retrieval"}, {"most sink"}, {"most local"}, {"broadest"}};
  for (int64_t l = 0; l < static_cast<int64_t>(figures.heads.size()); ++l) {
    for (int64_t h = 0; h < static_cast<int64_t>(figures.heads[l].size()); ++h) {
      const auto& f = figures.heads[l][h];
      const double values[] = {f.retrieval(), f.sink, f.local.size() > 2 ? f.local[2] : 0.0,
                               f.entropy};
      for (size_t c = 0; c < choices.size(); ++c) {
        if (values[c] > choices[c].value) choices[c] = {choices[c].why, l, h, values[c]};
      }
    }
  }
  const eval::Tokens part(text.begin(), text.begin() + count);
  Json heads = Json::array();
  at::NoGradGuard no_gradients;
  Pass pass;
  pass.attention = [&](int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const op::AttendOptions& options) {
    for (const auto& choice : choices) {
      if (choice.layer != l) continue;
      const int64_t group = config.heads / config.kv_heads;
      const auto one_q = q.select(2, choice.head)[0].to(at::kFloat);
      const auto one_k = k.select(2, choice.head / group)[0].to(at::kFloat);
      const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(3))));
      auto weights = at::matmul(one_q, one_k.t()) * scale;
      weights = weights.masked_fill(at::ones_like(weights, at::kBool).triu(1),
                                    -std::numeric_limits<double>::infinity());
      weights = at::softmax(weights, -1).mul(999).round().to(at::kLong).cpu().contiguous();
      const auto* data = weights.data_ptr<int64_t>();
      Json rows = Json::array();
      for (int64_t i = 0; i < count; ++i) {
        rows.push_back(std::vector<int64_t>(data + i * count, data + i * count + i + 1));
      }
      heads.push_back({{"layer", choice.layer},
                       {"head", choice.head},
                       {"why", choice.why},
                       {"value", choice.value},
                       {"weights", rows}});
    }
    return std::get<0>(op::attend(q, k, v, options));
  };
  bench.model.hidden(at::tensor(part, at::kLong).to(bench.model.options().device).unsqueeze(0),
                     pass);
  Json tokens = Json::array();
  for (int64_t id : part) {
    const int32_t one[] = {static_cast<int32_t>(id)};
    tokens.push_back(bench.tokenizer.decode(one));
  }
  return {{"tokens", tokens}, {"heads", heads}};
}

std::string continuation(const eval::Workbench& bench, const eval::Tokens& prompt,
                         const Programs& programs, at::ScalarType kv_dtype, int64_t count) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  options.kv_dtype = kv_dtype;
  options.programs = &programs;
  return generate(bench.model, bench.tokenizer, prompt, options).text;
}

eval::Workbench open_or_fall_back(const DemoOptions& options, Progress& progress) {
  try {
    return eval::open_workbench(options.model, options.load, progress);
  } catch (const Interrupted&) {
    throw;
  } catch (const Error& e) {
    if (options.model != "smollm2") throw;
    fmt::print(stderr, "heed: smollm2 cannot be had ({}); using the built-in model instead\n",
               e.what());
    return eval::open_workbench("builtin", options.load, progress);
  }
}

// The plan that the controls shuffle and the continuation runs with: the one nearest 0.3.
size_t chosen_budget(const std::vector<double>& budgets) {
  size_t chosen = 0;
  for (size_t n = 1; n < budgets.size(); ++n) {
    if (std::abs(budgets[n] - 0.3) < std::abs(budgets[chosen] - 0.3)) chosen = n;
  }
  return chosen;
}

// Makes a folder, and takes it away again if nothing was put into it: a run that could not begin
// leaves nothing behind.
class EmptyFolder {
 public:
  explicit EmptyFolder(std::string path) : path_(std::move(path)) { make_folders(path_); }
  ~EmptyFolder() {
    std::error_code ignored;
    fs::remove(path_, ignored);  // refuses where it holds something
  }
  EmptyFolder(const EmptyFolder&) = delete;
  EmptyFolder& operator=(const EmptyFolder&) = delete;

 private:
  std::string path_;
};

}  // namespace

namespace {

// Heads that the repair tries: unless asked for, some for the chosen plan and none for the others.
int repairs_at(const DemoOptions& o, double budget) {
  if (o.repairs >= 0) return o.repairs;
  return budget == o.budgets[chosen_budget(o.budgets)] ? 2 : 0;
}

// The demo's steps; costs in passes over `context` tokens.
std::vector<Steps::Step> steps_of(const DemoOptions& o) {
  const double search = static_cast<double>(o.search_texts), check = 2.0 * o.check_texts;
  const double evaluation = static_cast<double>(o.eval_texts + o.eval_documents) + 0.5;
  std::vector<Steps::Step> steps{
      {"heads", 6}, {"search", 8 * search + check}, {"dense", evaluation}};
  const double chosen = o.budgets[chosen_budget(o.budgets)];
  for (double budget : o.budgets) {
    const int heads = repairs_at(o, budget);
    const double repair = heads > 0 ? 5 * search + heads * check : 0;
    steps.push_back({fmt::format("plan {:g}", budget), o.candidates * check + repair + evaluation});
    if (budget == chosen) {
      for (int c = 1; c <= o.controls; ++c) {
        steps.push_back({fmt::format("shuffled {}", c), evaluation});
      }
    }
  }
  steps.push_back({"report", 1.5});
  return steps;
}

}  // namespace

namespace {

// What was not asked for, by --quick.
DemoOptions with_defaults(DemoOptions o) {
  const auto choose = [](int64_t& value, int64_t usual) {
    if (value == 0) value = usual;
  };
  choose(o.search_texts, 1);
  choose(o.check_texts, 1);
  choose(o.eval_texts, 1);
  choose(o.eval_documents, 3);
  if (o.controls < 0) o.controls = o.quick ? 2 : 3;
  if (o.candidates == 0) o.candidates = 2;
  if (o.budgets.empty()) o.budgets = o.quick ? std::vector{0.3} : std::vector{0.5, 0.3, 0.2};
  return o;
}

// Scores and measurements are kept in the report's folder: another budget or a second try needs
// them again.
std::string open_store(const DemoOptions& o) {
  const std::string store = (fs::path(o.out) / "scores.sqlite").string();
  if (o.fresh) {
    for (const char* part : {"", "-wal", "-shm"}) fs::remove(store + part);
  }
  return store;
}

std::vector<std::string> files_or(const std::vector<std::string>& files, std::string usual) {
  return files.empty() ? std::vector{std::move(usual)} : files;
}

// The model, and the texts and questions that it is searched and tested on.
struct Subject {
  const std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  eval::Workbench bench;
  int64_t context;
  data::Corpus search_text, test_text;
  data::RecallGenerator search_generator, test_generator;
  report::EvaluationData data;

  Subject(const DemoOptions& o, Progress& progress)
      : bench(open_or_fall_back(o, progress)),
        context(std::min(o.context, bench.model.context())),
        search_text(eval::open_text(bench, files_or(o.search_files, eval::search_book()))),
        test_text(eval::open_text(bench, files_or(o.test_files, eval::test_book()))),
        search_generator(search_text, bench.codec),
        test_generator(test_text, bench.codec) {
    search_generator.use_wording(eval::best_wording(bench.model, search_generator, context));
    test_generator.use_wording(search_generator.wording());
    data = report::make_evaluation_data(test_generator, test_text, context, o.eval_texts,
                                        o.eval_documents, o.needles, o.seed + 1);
  }

  plan::SearchData search_data(const DemoOptions& o) const {
    return plan::make_search_data(search_generator, search_text, context, o.search_texts,
                                  o.check_texts, o.seed);
  }
};

plan::SearchOptions search_options(const DemoOptions& o, int64_t context, data::Records* records) {
  plan::SearchOptions options;
  options.grid = plan::default_grid(context, 16);
  options.lengths = {context};
  options.kv_dtype = o.kv_dtype;
  options.candidates = o.candidates;
  options.records = records;
  return options;
}

// The rows of the report as they are measured; what is there lies in report.json at any time.
class Rows {
 public:
  Rows(const DemoOptions& o, const Subject& subject, data::Records& records, Steps& progress)
      : options_(o),
        subject_(subject),
        key_(measuring_key(subject.bench, subject.data, subject.context, o.kv_dtype)),
        kept_(records, key_),
        progress_(progress) {}

  void measure_dense() {
    dense_ = row("dense", 1, nullptr);
    say_if_kept(dense_.at("earlier"));
    save();
  }

  // Searches a plan at `budget` (or takes it over), measures it and writes its file; returns its
  // programs.
  Programs measure_plan(plan::Search& search, const std::string& search_name, double budget) {
    const int repairs = repairs_at(options_, budget);
    const std::string asked_for = canonical_json({{"data", search_name},
                                                  {"budget", budget},
                                                  {"candidates", options_.candidates},
                                                  {"repairs", repairs}});
    auto plan = kept_.plan(asked_for);
    const bool found_earlier = plan.has_value();
    if (!found_earlier) {
      plan = find_plan(search, budget, repairs);
      kept_.keep_plan(asked_for, *plan);
    }
    const Programs programs = resolve_programs(*plan, subject_.context);
    Json measured = row("heed", budget, &programs);
    say_if_kept(found_earlier && measured.at("earlier"));
    const std::string file = fmt::format("plan-{:g}.json", budget);
    write_plan(*plan, (fs::path(options_.out) / file).string());
    measured["plan"] = plan_to_json(*plan);
    measured["file"] = file;
    plans_.push_back(std::move(measured));
    save();
    return programs;
  }

  // `programs` dealt to the heads at random, for the `number`-th time (from 1).
  void measure_control(const Programs& programs, double budget, int number) {
    const auto shuffled =
        plan::shuffled(programs, options_.seed + static_cast<uint64_t>(number - 1));
    const std::string name = fmt::format("shuffled {}", number);
    Json measured = row(name, budget, &shuffled);
    measured["plan"] =
        plan_to_json(plan::to_plan(subject_.bench.model, shuffled, {subject_.context},
                                   {{"method", name}, {"budget", budget}}));
    control_.push_back(std::move(measured));
    say_if_kept(control_.back().at("earlier"));
    save();
  }

  void add_to(Json& report) const {
    report["key"] = key_;
    report["dense"] = dense_;
    report["plans"] = plans_;
    report["control"] = control_;
    report["needles"] = dense_needles_.size();
    report["seconds"] = report::round_to(seconds(), 1);
  }

 private:
  double seconds() const {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - subject_.start).count();
  }

  Plan find_plan(plan::Search& search, double budget, int repairs) const {
    const auto found = search.find(budget, repairs);
    Json tried = Json::array();
    for (const auto& candidate : search.tried()) tried.push_back(plan::to_json(candidate));
    return plan::to_plan(subject_.bench.model, found.programs, {subject_.context},
                         {{"method", "heed"},
                          {"budget", budget},
                          {"how", found.how},
                          {"dense_nll", search.dense().nll},
                          {"dense_answer_nll", search.dense().answer_nll},
                          {"candidates", tried}});
  }

  // The row of a setting: an earlier run's, or measured now and kept.
  Json row(const std::string& method, double budget, const Programs* programs) {
    const Decoder& model = subject_.bench.model;
    auto row = kept_.evaluation(model, programs);
    const bool earlier = row.has_value();
    if (earlier) {
      if (!programs) dense_needles_ = needles_from_json(row->at("needle_results"));
    } else {
      row = report::to_json(report::evaluate(model, subject_.data, programs, options_.kv_dtype,
                                             dense_needles_, progress_));
      (*row)["measured"] = now_utc();
      if (!programs) (*row)["needle_results"] = to_json(dense_needles_);
      kept_.keep_evaluation(model, programs, *row);
    }
    (*row)["method"] = method;
    (*row)["budget"] = budget;
    (*row)["earlier"] = earlier;
    return *row;
  }

  void say_if_kept(bool all) {
    if (all) progress_.skip("kept from an earlier run");
  }

  // What is measured so far, for whoever stops a long run.
  void save() const {
    Json partial = {
        {"partial", true}, {"model", {{"name", options_.model}}}, {"context", subject_.context}};
    add_to(partial);
    write_text_atomic((fs::path(options_.out) / "report.json").string(), partial.dump(1) + "\n");
  }

  const DemoOptions& options_;
  const Subject& subject_;
  const Json key_;
  Kept kept_;
  Steps& progress_;
  Json dense_, plans_ = Json::array(), control_ = Json::array();
  std::vector<eval::NeedleResult> dense_needles_;
};

// What the search expects one head alone to cost under each window, [layer][head].
Json window_cost(const plan::Search& search, const plan::SearchOptions& options) {
  Json cost = Json::array();
  const auto& scores = search.text_scores();
  const auto& needles = search.needle_scores();
  for (int64_t l = 0; l < scores.layers; ++l) {
    Json row = Json::array();
    for (int64_t h = 0; h < scores.heads; ++h) {
      Json text = Json::array(), needle = Json::array();
      for (int64_t p = 0; p < scores.options; ++p) {
        text.push_back(scores.change(l, h, p, false));
        needle.push_back(needles.change(l, h, p, false));
      }
      row.push_back({{"text", text}, {"needle", needle}});
    }
    cost.push_back(std::move(row));
  }
  return {{"windows", options.grid.windows}, {"sinks", options.grid.sinks}, {"heads", cost}};
}

// What the report's numbers mean.
Json definitions() {
  return {
      {"perplexity",
       "of tokens from position 512 on (half the context where that is shorter), windows of "
       "`context` tokens of the test text, through the plan's own caches"},
      {"recall",
       "share of needles whose five-digit code is predicted exactly under teacher forcing; one "
       "prefill a document, each question on a fork of its state"},
      {"recall_ratio",
       "recall over dense recall on the same needles; low, high: 95% paired bootstrap"},
      {"kv_bytes", "bytes allocated for keys and values of one sequence at the context"},
      {"kv_formula", "sum over heads of 2 D e min(N, sinks + window)"},
      {"kept", "positions kept over those of the dense cache"},
      {"decode_ms",
       "median time of a token after `context` tokens; attention_ms: its attention calls alone"},
      {"prefill_ms",
       "median time of reading `context` tokens in chunks of 512, without the output layer"},
      {"control", "the chosen plan's programs dealt to heads at random"},
      {"window_cost",
       "expected change of the loss a token (text) or answer token (needle) when one head "
       "alone gets sinks + window: half the mean squared <dLoss/dy, change of y>"},
      {"earlier",
       "true: an earlier run into the same folder measured it, its times too, at `measured`; all "
       "that `key` names was the same"}};
}

// The report but for its rows: what the model is, what its heads do, examples.
Json describe(const DemoOptions& o, const Subject& subject, const probe::Figures& figures,
              const Programs& chosen, Progress& progress) {
  progress.begin("attention and continuation", 2);
  const eval::Workbench& bench = subject.bench;
  const ModelConfig& config = bench.model.config();
  Json report = probe::to_json(figures);
  report["model"] = {{"name", o.model},
                     {"path", fs::path(bench.path).filename().string()},
                     {"hash", bench.model.hash()},
                     {"layers", config.layers},
                     {"heads", config.heads},
                     {"kv_heads", config.kv_heads},
                     {"head_dim", config.head_dim}};
  report["context"] = subject.context;
  report["device"] = bench.model.options().device.str();
  report["chosen"] = chosen_budget(o.budgets);
  report["needle_wording"] = data::RecallGenerator::statement_of(subject.test_generator.wording());
  report["texts"] = subject.data.texts.size();
  report["definitions"].update(definitions());
  const eval::Tokens& text = subject.data.texts[0];
  report["attention"] = attention_sample(bench, figures, text);
  progress.step(1);
  const eval::Tokens prompt(text.begin(), text.end() - 128);
  const std::vector<int32_t> tail(prompt.end() - 48, prompt.end());
  report["continuation"] = {{"prompt_end", bench.tokenizer.decode(tail)},
                            {"text", continuation(bench, prompt, chosen, o.kv_dtype, 64)}};
  progress.end();
  return report;
}

// Heads measured, and their importance by the search's scores.
void take_importance(probe::Figures& figures, const plan::Search& search) {
  const auto& importance = search.text_scores().importance;
  size_t next = 0;
  for (auto& layer : figures.heads) {
    for (auto& head : layer) head.importance = importance.at(next++);
  }
}

}  // namespace

Json run_demo(const DemoOptions& asked, Progress& shown) {
  const DemoOptions o = with_defaults(asked);
  // Fail before the work, not after it.
  const EmptyFolder until_written(o.out);
  const std::string json_file = (fs::path(o.out) / "report.json").string();
  check_writable(json_file);

  const Subject subject(o, shown);
  Steps progress(shown, steps_of(o));
  progress.next();
  auto inputs =
      probe::make_inputs(subject.search_generator, subject.search_text, subject.context, 1, o.seed);
  inputs.importance = false;  // comes with the search's scores
  auto figures = probe::measure_heads(subject.bench.model, inputs, progress);

  progress.next();
  data::Records records(open_store(o));
  const auto options = search_options(o, subject.context, &records);
  auto search_data = subject.search_data(o);
  const std::string search_name = fingerprint(search_data);
  plan::Search search(subject.bench.model, std::move(search_data), options, progress);
  take_importance(figures, search);

  Rows rows(o, subject, records, progress);
  progress.next();
  rows.measure_dense();
  Programs chosen;
  for (size_t n = 0; n < o.budgets.size(); ++n) {
    progress.next();
    const Programs programs = rows.measure_plan(search, search_name, o.budgets[n]);
    if (n != chosen_budget(o.budgets)) continue;
    chosen = programs;
    for (int c = 1; c <= o.controls; ++c) {
      progress.next();
      rows.measure_control(programs, o.budgets[n], c);
    }
  }

  progress.next();
  Json report = describe(o, subject, figures, chosen, progress);
  report["window_cost"] = window_cost(search, options);
  rows.add_to(report);
  write_text_atomic(json_file, report.dump(1) + "\n");
  write_text_atomic((fs::path(o.out) / "report.html").string(), report::render_html(report));
  return report;
}

std::string demo_table(const Json& report) {
  const auto& dense = report.at("dense");
  const double ppl = dense.at("perplexity"), bytes = dense.at("kv_bytes");
  std::string text = fmt::format(
      "{} at {} tokens, {} texts, {} needles, {:.0f} s\n\n"
      "{:<14} {:>8} {:>11} {:>8} {:>7} {:>16} {:>10} {:>10} {:>10} {:>10}\n",
      report.at("model").at("name").get<std::string>(), report.at("context").get<int64_t>(),
      report.at("texts").get<int64_t>(), report.at("needles").get<int64_t>(),
      report.at("seconds").get<double>(), "", "KV MiB", "perplexity", "ratio", "recall", "of dense",
      "prefill", "decode", "attention", "KV share");
  std::string first, last;  // when the rows of earlier runs were measured
  const auto row = [&](std::string name, const Json& e) {
    if (e.value("earlier", false)) {
      name += " *";
      const std::string when = e.at("measured");
      if (first.empty() || when < first) first = when;
      last = std::max(last, when);
    }
    const auto& ratio = e.at("recall_ratio");
    text += fmt::format(
        "{:<14} {:>8.1f} {:>11.3f} {:>8.4f} {:>7.3f} {:>16} {:>8.0f}ms {:>8.2f}ms {:>8.3f}ms "
        "{:>9.1f}%\n",
        name, e.at("kv_bytes").get<double>() / (1 << 20), e.at("perplexity").get<double>(),
        e.at("perplexity").get<double>() / ppl, e.at("recall").get<double>(),
        fmt::format("{:.2f} [{:.2f}, {:.2f}]", ratio.at("value").get<double>(),
                    ratio.at("low").get<double>(), ratio.at("high").get<double>()),
        e.at("prefill_ms").get<double>(), e.at("decode_ms").get<double>(),
        e.at("attention_ms").get<double>(), 100 * e.at("kv_bytes").get<double>() / bytes);
  };
  row("dense", dense);
  for (const auto& plan : report.at("plans")) {
    row(fmt::format("plan {:g}", plan.at("budget").get<double>()), plan);
  }
  for (const auto& control : report.at("control")) {
    row(control.at("method").get<std::string>(), control);
  }
  if (!first.empty()) {
    text += fmt::format(
        "\n* kept from an earlier run ({}{}), its times too; --fresh measures all again\n", first,
        first == last ? "" : " to " + last);
  }
  return text;
}

}  // namespace heed::lab
