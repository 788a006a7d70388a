// heed plan: which heads need the whole context, and how much the others need.
#include <fmt/format.h>

#include <cstdio>
#include <map>

#include "cli/command.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "data/records.h"
#include "eval/workbench.h"
#include "io/error.h"
#include "plan/make.h"

namespace heed::cli {
namespace {

struct PlanArguments {
  CommonOptions common;
  plan::MakeOptions make;
  std::string model, method = "heed", kv_dtype;
  std::vector<std::string> data;
  bool no_records = false;
};

// What a method makes no use of is refused. Budget 1 is the end of every method's scale, where all
// heads are full: it takes what the budgets below it take.
void check_method(const CLI::App& command, const PlanArguments& o) {
  const std::string why = "has no effect with --method " + o.method;
  switch (o.make.method) {
    case plan::Method::kHeed:
    case plan::Method::kText:
      return refuse(command, {"--steps"}, why + "; it is of duo");
    case plan::Method::kDuo:
      return refuse(command,
                    {"--windows", "--sinks", "--checks", "--candidates", "--repairs",
                     "--no-records", "--kv-dtype"},
                    why);
    case plan::Method::kRazor:
      return refuse(command,
                    {"--windows", "--checks", "--candidates", "--repairs", "--thorough", "--steps",
                     "--no-records", "--kv-dtype"},
                    why);
    case plan::Method::kBits:
    case plan::Method::kUniform:
      return refuse(command,
                    {"--windows", "--data", "--texts", "--checks", "--candidates", "--repairs",
                     "--thorough", "--steps", "--seed", "--no-records", "--kv-dtype"},
                    why + ", which looks at no text");
  }
}

void run(const CLI::App& command, PlanArguments& o) {
  o.make.method = plan::method_from_name(o.method);
  check_method(command, o);
  if (o.common.out.empty()) o.common.out = "plan.json";
  o.common.apply();
  const auto load = load_options(o.common);
  o.make.kv_dtype = kv_dtype(o.kv_dtype, load);
  if (!o.no_records) o.make.records = data::default_records_path();
  auto progress = make_progress();
  const auto bench = eval::open_workbench(o.model, load, *progress);
  const auto made = plan::make_plan(
      bench, o.data.empty() ? std::vector{eval::search_book()} : o.data, o.make, *progress);
  write_plan(made.plan, o.common.out);
  if (o.common.json) {
    std::puts(plan_to_json(made.plan).dump(1).c_str());
    return;
  }
  std::map<std::string, int> uses;
  for (const auto& layer : made.plan.heads) {
    for (int index : layer) ++uses[made.plan.programs[static_cast<size_t>(index)].id];
  }
  fmt::print(o.common.table(), "{}: {:.1f}% of the dense cache at {} tokens\n", o.common.out,
             100 * made.kept, made.length);
  for (const auto& [id, count] : uses) {
    fmt::print(o.common.table(), "  {:<20} {} heads\n", id, count);
  }
}

void add_search(CLI::App* command, PlanArguments& o) {
  auto& make = o.make;
  command->add_option("--budget", make.budget, "Share of the dense cache, above 0 and at most 1")
      ->check(real(0, 1, true))
      ->capture_default_str();
  command
      ->add_option("--method", o.method,
                   "heed (text, copies and needles), text, duo (trained gates), razor (probes), "
                   "uniform (one window), bits (one number of bits)")
      ->capture_default_str();
  command
      ->add_option(
          "--lengths", make.lengths,
          "Lengths at which the budget holds, e.g. 2048,4096 (default: 4096, or the model's)")
      ->delimiter(',')
      ->check(whole(1, kMostTokens));
  command
      ->add_option("--windows", make.windows,
                   "Windows a head may get (default: 32, 48, 64, 96, ...)")
      ->delimiter(',')
      ->check(whole(1, kMostTokens));
  command->add_option("--sinks", make.sinks, "First keys that every window keeps")
      ->check(whole(0, kMostTokens))
      ->capture_default_str();
  o.common.add_input(command, "--data", o.data, "Text to search on (default: a book of Heed's)")
      ->check(input_file());
  command->add_option("--texts", make.texts, "Texts and needle documents that heads are scored on")
      ->check(whole(1, 1000))
      ->capture_default_str();
  command->add_option("--checks", make.checks, "Texts and documents that candidates are run on")
      ->check(whole(1, 1000))
      ->capture_default_str();
  command->add_option("--candidates", make.candidates, "Joint allocations that are run")
      ->check(whole(2, 10))
      ->capture_default_str();
  command->add_option("--repairs", make.repairs, "Heads that the repair tries with a full cache")
      ->check(whole(0, 10))
      ->capture_default_str();
  command->add_flag("--thorough", make.thorough,
                    "More texts, and every head measured alone (meant for a GPU)");
  command->add_option("--steps", make.steps, "Training steps of --method duo")
      ->check(whole(1, 100000))
      ->capture_default_str();
  command->add_option("--seed", make.seed, "Of needles and questions")
      ->check(seeds())
      ->capture_default_str();
  command->add_flag("--no-records", o.no_records, "Do not keep scores for another budget");
}

}  // namespace

void add_plan(CLI::App& app) {
  auto* command = app.add_subcommand(
      "plan", "Choose a cache program for every KV head under a budget; writes a plan file");
  auto o = std::make_shared<PlanArguments>();
  o->common.add_model(command, o->model);
  add_search(command, *o);
  add_kv_dtype(command, o->kv_dtype);
  o->common.add_json(command);
  o->common.add_compute(command);
  o->common.add_out(command, "Plan file (default: plan.json)");
  add_examples(command, {"heed plan smollm2 --budget 0.3 --lengths 4096 --out plan.json"});
  command->callback([command, o] { run(*command, *o); });
}

}  // namespace heed::cli
