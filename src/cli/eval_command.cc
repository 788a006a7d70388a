// heed eval: perplexity, tasks, speed and memory, dense and under a plan.
#include <fmt/format.h>

#include <cstdio>
#include <optional>

#include "cache/plan/plan_file.h"
#include "cache/plan/plan_programs.h"
#include "cli/command.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "cli/streams.h"
#include "eval/workbench.h"
#include "io/atomic_file.h"
#include "report/eval_report.h"

namespace heed::cli {
namespace {

// The texts of --data, or Heed's, by the names that the user knows.
std::vector<report::NamedFile> shown_files(const std::vector<std::string>& data) {
  std::vector<report::NamedFile> files;
  for (const auto& file : data.empty() ? eval::test_texts() : data) {
    files.push_back(report::named_file(file, as_given(file)));
  }
  return files;
}

}  // namespace

void add_eval(CLI::App& app) {
  auto* command = app.add_subcommand(
      "eval", "Perplexity by text, tasks by kind, speed and memory, beside the dense model's");
  struct Options {
    CommonOptions common;
    report::EvalOptions eval;
    std::string model, plan, kv_dtype;
    std::vector<std::string> data;
    bool force = false;
  };
  auto o = std::make_shared<Options>();
  auto& e = o->eval;
  o->common.add_model(command, o->model);
  o->common
      .add_input(command, "--plan", o->plan,
                 "Plan file; without one the dense model alone is measured")
      ->check(input_file());
  command->add_flag("--force", o->force, "Run a plan made for another model of the same shape");
  command
      ->add_option("--lengths", e.lengths,
                   "Context lengths, e.g. 1024,4096 (default: 4096, or the model's)")
      ->delimiter(',')
      ->check(whole(128, kMostTokens));
  o->common
      .add_input(command, "--data", o->data,
                 "Texts to evaluate on, one figure each; files, plain or .xz (default: Heed's)")
      ->check(input_file());
  command->add_option("--texts", e.texts, "Pieces of each text for perplexity")
      ->check(whole(1, 10000))
      ->capture_default_str();
  o->common
      .add_input(command, "--tasks", e.tasks,
                 "Tasks of your own in place of Heed's: lines {\"kind\": \"...\", \"prompt\": "
                 "\"...\", \"answer\": \"...\"}")
      ->check(input_file());
  command->add_option("--kinds", e.kinds, "Kinds of Heed's tasks, e.g. words,keys (default: all)")
      ->delimiter(',');
  command->add_option("--documents", e.documents, "Documents for each kind of task; 0: no tasks")
      ->check(whole(0, 10000))
      ->capture_default_str();
  command->add_option("--questions", e.questions, "Questions of each kind a document")
      ->check(whole(1, 64))
      ->capture_default_str();
  command->add_option("--seed", e.seed, "Of tasks")->check(seeds())->capture_default_str();
  add_kv_dtype(command, o->kv_dtype);
  o->common.add_json(command);
  o->common.add_compute(command);
  o->common.add_out(command, "File for the JSON");
  add_examples(command, {"heed eval smollm2 --plan plan.json --lengths 4096",
                         "heed eval smollm2 --tasks tasks.jsonl"});
  command->callback([command, o] {
    if (o->plan.empty()) refuse(*command, {"--force"}, "goes with --plan");
    if (!o->eval.tasks.empty()) {
      refuse(*command, {"--kinds", "--documents", "--questions"},
             "is of Heed's tasks, not --tasks");
    }
    o->common.apply();
    const auto load = load_options(o->common);
    o->eval.kv_dtype = kv_dtype(o->kv_dtype, load);
    auto progress = make_progress();
    const auto bench = eval::open_workbench(o->model, load, *progress);
    std::optional<Programs> programs;
    if (!o->plan.empty()) {
      const auto plan = read_plan(o->plan);
      check_plan_fits(plan, o->plan, bench.model.hash(), bench.model.config().layers,
                      bench.model.config().kv_heads, o->force);
      programs = resolve_programs(plan);
    }
    const auto report = report::run_eval(bench, shown_files(o->data),
                                         programs ? &*programs : nullptr, o->eval, *progress);
    if (!o->common.out.empty()) write_text_atomic(o->common.out, report.dump(1) + "\n");
    if (o->common.json) {
      std::puts(report.dump(1).c_str());
    } else {
      std::fputs(report::eval_table(report).c_str(), o->common.table());
    }
  });
}

}  // namespace heed::cli
