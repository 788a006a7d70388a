#include "report/demo.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "cache/kv_state.h"
#include "cache/plan_programs.h"
#include "io/atomic_file.h"
#include "io/error.h"
#include "model/hub.h"
#include "op/attend.h"
#include "probe/figures.h"
#include "report/html.h"
#include "report/kept.h"
#include "report/steps.h"

namespace heed::report {
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
  c10::InferenceMode no_gradients;
  StateOptions options;
  options.kv_dtype = kv_dtype;
  options.programs = &programs;
  auto state = bench.model.make_state(options);
  auto scores = bench.model.logits(bench.model.prefill(prompt, *state)[0]);
  std::vector<int32_t> ids;
  DecoderState* const states[] = {state.get()};
  for (int64_t n = 0; n < count && state->length() < bench.model.context(); ++n) {
    const int64_t next[] = {scores.argmax(-1).item<int64_t>()};
    ids.push_back(static_cast<int32_t>(next[0]));
    scores = bench.model.logits(bench.model.step(next, states)[0]);
  }
  return bench.tokenizer.decode(ids);
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

double round_to(double value, int digits) {
  const double unit = std::pow(10.0, digits);
  return std::round(value * unit) / unit;
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

EvaluationData make_evaluation_data(const data::RecallGenerator& generator,
                                    const data::Corpus& corpus, int64_t context, int64_t texts,
                                    int64_t documents, int64_t needles, uint64_t seed) {
  EvaluationData data;
  data.texts = eval::spread_windows(corpus, texts, context);
  data::Random random(seed, 0xe7a1);
  for (int64_t n = 0; n < documents; ++n) {
    data.needles.push_back(generator.needles(context - 64, needles, random));
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

Json to_json(const Evaluation& e) {
  return {{"method", e.method},
          {"budget", e.budget},
          {"kept", round_to(e.kept, 4)},
          {"perplexity", e.perplexity},
          {"recall", e.recall},
          {"recall_ratio",
           {{"value", e.recall_ratio.value},
            {"low", e.recall_ratio.low},
            {"high", e.recall_ratio.high}}},
          {"answer_nll", e.answer_nll},
          {"prefill_ms", round_to(e.prefill_ms, 2)},
          {"first_token_ms", round_to(e.first_token_ms, 2)},
          {"decode_ms", round_to(e.decode_ms, 3)},
          {"attention_ms", round_to(e.attention_ms, 4)},
          {"kv_bytes", e.kv_bytes},
          {"kv_formula", e.kv_formula}};
}

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

Json run_demo(const DemoOptions& asked, Progress& shown) {
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  DemoOptions o = asked;
  const auto choose = [&](int64_t& value, int64_t quick, int64_t usual) {
    if (value == 0) value = o.quick ? quick : usual;
  };
  choose(o.search_texts, 1, 1);
  choose(o.check_texts, 1, 1);
  choose(o.eval_texts, 1, 1);
  choose(o.eval_documents, 3, 3);
  if (o.controls < 0) o.controls = o.quick ? 2 : 3;
  if (o.candidates == 0) o.candidates = 2;
  if (o.budgets.empty()) o.budgets = o.quick ? std::vector{0.3} : std::vector{0.5, 0.3, 0.2};
  // Fail before the work, not after it.
  const EmptyFolder until_written(o.out);
  check_writable((fs::path(o.out) / "report.json").string());

  const auto bench = open_or_fall_back(o, shown);
  const int64_t context = std::min(o.context, bench.model.context());
  const auto search_text = eval::open_text(
      bench, o.search_files.empty() ? std::vector{eval::search_book()} : o.search_files);
  const auto test_text =
      eval::open_text(bench, o.test_files.empty() ? std::vector{eval::test_book()} : o.test_files);
  data::RecallGenerator search_generator(search_text, bench.codec);
  data::RecallGenerator test_generator(test_text, bench.codec);
  search_generator.use_wording(eval::best_wording(bench.model, search_generator, context));
  test_generator.use_wording(search_generator.wording());

  Steps progress(shown, steps_of(o));
  progress.next();
  auto inputs = probe::make_inputs(search_generator, search_text, context, 1, o.seed);
  inputs.importance = false;  // comes with the search's scores
  auto figures = probe::measure_heads(bench.model, inputs, progress);

  progress.next();
  plan::SearchOptions search_options;
  search_options.grid = plan::default_grid(context, 16);
  search_options.lengths = {context};
  search_options.kv_dtype = o.kv_dtype;
  search_options.candidates = o.candidates;
  // Scores and measurements are kept in the report's folder: another budget or a second try needs
  // them again.
  const std::string store = (fs::path(o.out) / "scores.sqlite").string();
  if (o.fresh) {
    for (const char* part : {"", "-wal", "-shm"}) fs::remove(store + part);
  }
  data::Records records(store);
  search_options.records = &records;
  auto search_data = plan::make_search_data(search_generator, search_text, context, o.search_texts,
                                            o.check_texts, o.seed);
  const std::string search_name = fingerprint(search_data);
  plan::Search search(bench.model, std::move(search_data), search_options, progress);

  for (size_t l = 0; l < figures.heads.size(); ++l) {
    for (size_t h = 0; h < figures.heads[l].size(); ++h) {
      figures.heads[l][h].importance =
          search.text_scores().importance[l * static_cast<size_t>(bench.model.config().heads) + h];
    }
  }

  const auto data = make_evaluation_data(test_generator, test_text, context, o.eval_texts,
                                         o.eval_documents, o.needles, o.seed + 1);
  const Json key = measuring_key(bench, data, context, o.kv_dtype);
  Kept kept(records, key);
  std::vector<eval::NeedleResult> dense_needles;
  // The row of a setting: an earlier run's, or measured now and kept.
  const auto row_of = [&](const std::string& method, double budget, const Programs* programs) {
    auto row = kept.evaluation(bench.model, programs);
    const bool earlier = row.has_value();
    if (earlier) {
      if (!programs) dense_needles = needles_from_json(row->at("needle_results"));
    } else {
      row = to_json(evaluate(bench.model, data, programs, o.kv_dtype, dense_needles, progress));
      (*row)["measured"] = now_utc();
      if (!programs) (*row)["needle_results"] = to_json(dense_needles);
      kept.keep_evaluation(bench.model, programs, *row);
    }
    (*row)["method"] = method;
    (*row)["budget"] = budget;
    (*row)["earlier"] = earlier;
    return *row;
  };
  const auto say_if_kept = [&](bool all) {
    if (all) progress.skip("kept from an earlier run");
  };

  progress.next();
  const Json dense = row_of("dense", 1, nullptr);
  say_if_kept(dense.at("earlier"));

  Json plans = Json::array(), control = Json::array();
  // What is measured so far, for whoever stops a long run.
  const auto save = [&] {
    const Json partial = {{"partial", true},     {"model", {{"name", o.model}}},
                          {"context", context},  {"key", key},
                          {"dense", dense},      {"plans", plans},
                          {"control", control},  {"needles", dense_needles.size()},
                          {"seconds", seconds()}};
    write_text_atomic((fs::path(o.out) / "report.json").string(), partial.dump(1) + "\n");
  };
  save();
  const size_t chosen = chosen_budget(o.budgets);
  Programs chosen_programs;
  for (size_t n = 0; n < o.budgets.size(); ++n) {
    const double budget = o.budgets[n];
    const int repairs = repairs_at(o, budget);
    progress.next();
    const std::string asked_for = canonical_json({{"data", search_name},
                                                  {"budget", budget},
                                                  {"candidates", o.candidates},
                                                  {"repairs", repairs}});
    auto plan = kept.plan(asked_for);
    const bool found_earlier = plan.has_value();
    if (!found_earlier) {
      const auto found = search.find(budget, repairs);
      Json tried = Json::array();
      for (const auto& candidate : search.tried()) tried.push_back(plan::to_json(candidate));
      plan = plan::to_plan(bench.model, found.programs, {context},
                           {{"method", "heed"},
                            {"budget", budget},
                            {"how", found.how},
                            {"dense_nll", search.dense().nll},
                            {"dense_answer_nll", search.dense().answer_nll},
                            {"candidates", tried}});
      kept.keep_plan(asked_for, *plan);
    }
    const Programs programs = resolve_programs(*plan, context);
    Json row = row_of("heed", budget, &programs);
    say_if_kept(found_earlier && row.at("earlier"));
    const std::string file = fmt::format("plan-{:g}.json", budget);
    write_plan(*plan, (fs::path(o.out) / file).string());
    row["plan"] = plan_to_json(*plan);
    row["file"] = file;
    plans.push_back(std::move(row));
    save();
    if (n != chosen) continue;
    chosen_programs = programs;
    for (int c = 0; c < o.controls; ++c) {
      const auto shuffled = plan::shuffled(programs, o.seed + static_cast<uint64_t>(c));
      progress.next();
      control.push_back(row_of(fmt::format("shuffled {}", c + 1), budget, &shuffled));
      say_if_kept(control.back().at("earlier"));
      save();
    }
  }

  progress.next();
  progress.begin("attention and continuation", 2);
  Json report = probe::to_json(figures);
  report["model"] = {{"name", o.model},
                     {"path", fs::path(bench.path).filename().string()},
                     {"hash", bench.model.hash()},
                     {"layers", bench.model.config().layers},
                     {"heads", bench.model.config().heads},
                     {"kv_heads", bench.model.config().kv_heads},
                     {"head_dim", bench.model.config().head_dim}};
  report["context"] = context;
  report["device"] = bench.model.options().device.str();
  report["key"] = key;
  report["dense"] = dense;
  report["plans"] = plans;
  report["control"] = control;
  report["chosen"] = chosen;
  report["needles"] = dense_needles.size();
  report["needle_wording"] = data::RecallGenerator::statement_of(test_generator.wording());
  report["texts"] = data.texts.size();
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
  report["window_cost"] = {{"windows", search_options.grid.windows},
                           {"sinks", search_options.grid.sinks},
                           {"heads", cost}};
  report["attention"] = attention_sample(bench, figures, data.texts[0]);
  progress.step(1);
  {
    const eval::Tokens prompt(data.texts[0].begin(), data.texts[0].end() - 128);
    const std::vector<int32_t> tail(prompt.end() - 48, prompt.end());
    report["continuation"] = {
        {"prompt_end", bench.tokenizer.decode(tail)},
        {"text", continuation(bench, prompt, chosen_programs, o.kv_dtype, 64)}};
  }
  progress.end();
  Json defined = report["definitions"];
  defined["perplexity"] =
      "of tokens from position 512 on (half the context where that is shorter), windows of "
      "`context` tokens of the test text, through the plan's own caches";
  defined["recall"] =
      "share of needles whose five-digit code is predicted exactly under teacher forcing; one "
      "prefill a document, each question on a fork of its state";
  defined["recall_ratio"] =
      "recall over dense recall on the same needles; low, high: 95% paired bootstrap";
  defined["kv_bytes"] = "bytes allocated for keys and values of one sequence at the context";
  defined["kv_formula"] = "sum over heads of 2 D e min(N, sinks + window)";
  defined["kept"] = "positions kept over those of the dense cache";
  defined["decode_ms"] =
      "median time of a token after `context` tokens; attention_ms: its attention calls alone";
  defined["prefill_ms"] =
      "median time of reading `context` tokens in chunks of 512, without the output layer";
  defined["control"] = "the chosen plan's programs dealt to heads at random";
  defined["window_cost"] =
      "expected change of the loss a token (text) or answer token (needle) when one head "
      "alone gets sinks + window: half the mean squared <dLoss/dy, change of y>";
  defined["earlier"] =
      "true: an earlier run into the same folder measured it, its times too, at `measured`; all "
      "that "
      "`key` names was the same";
  report["definitions"] = defined;
  report["seconds"] = round_to(seconds(), 1);
  write_text_atomic((fs::path(o.out) / "report.json").string(), report.dump(1) + "\n");
  write_text_atomic((fs::path(o.out) / "report.html").string(), render_html(report));
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

}  // namespace heed::report
