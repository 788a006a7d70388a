// heed plan: which heads need the whole context, and how much the others need.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "cli/command.h"
#include "cli/model_options.h"
#include "data/records.h"
#include "eval/workbench.h"
#include "io/error.h"
#include "plan/make.h"

namespace heed::cli {

void add_plan(CLI::App& app) {
  auto* command = app.add_subcommand(
      "plan", "Choose a cache program for every KV head under a budget; writes a plan file");
  struct Options {
    CommonOptions common;
    plan::MakeOptions make;
    std::string model, method = "heed", kv_dtype;
    std::vector<std::string> data;
    bool no_records = false;
  };
  auto o = std::make_shared<Options>();
  auto& make = o->make;
  command->add_option("MODEL", o->model, "Folder, .gguf file or name of `heed models`")->required();
  command->add_option("--budget", make.budget, "Share of the dense cache, above 0 and at most 1")
      ->capture_default_str();
  command
      ->add_option("--method", o->method,
                   "heed (text and needles), text, duo (trained gates), razor (probes), uniform")
      ->capture_default_str();
  command
      ->add_option(
          "--lengths", make.lengths,
          "Lengths at which the budget holds, e.g. 2048,4096 (default: 4096, or the model's)")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--windows", make.windows,
                   "Windows a head may get (default: 32, 48, 64, 96, ...)")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command->add_option("--sinks", make.sinks, "First keys that every window keeps")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--data", o->data, "Text to search on (default: a book of Heed's)")
      ->check(CLI::ExistingFile);
  command->add_option("--texts", make.texts, "Texts and needle documents that heads are scored on")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--checks", make.checks, "Texts and documents that candidates are run on")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--candidates", make.candidates, "Joint allocations that are run")
      ->check(CLI::Range(2, 10))
      ->capture_default_str();
  command->add_option("--repairs", make.repairs, "Heads that the repair tries with a full cache")
      ->check(CLI::Range(0, 10))
      ->capture_default_str();
  command->add_flag("--thorough", make.thorough,
                    "More texts, and every head measured alone (meant for a GPU)");
  command->add_option("--steps", make.steps, "Training steps of --method duo")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seed", make.seed, "Of needles and questions")->capture_default_str();
  command->add_flag("--no-records", o->no_records, "Do not keep scores for another budget");
  add_kv_dtype(command, o->kv_dtype);
  o->common.add_json(command);
  o->common.add_compute(command);
  o->common.add_out(command, "plan file (default: plan.json)");
  command->callback([o] {
    o->common.apply();
    o->make.method = plan::method_from_name(o->method);
    const auto load = load_options(o->common);
    o->make.kv_dtype = kv_dtype(o->kv_dtype, load);
    if (!o->no_records) o->make.records = data::default_records_path();
    auto progress = make_progress();
    const auto bench = eval::open_workbench(o->model, load, *progress);
    const auto made = plan::make_plan(
        bench, o->data.empty() ? std::vector{eval::search_book()} : o->data, o->make, *progress);
    const std::string out = o->common.out.empty() ? "plan.json" : o->common.out;
    write_plan(made.plan, out);
    if (o->common.json) {
      std::puts(plan_to_json(made.plan).dump(1).c_str());
      return;
    }
    std::map<std::string, int> uses;
    for (const auto& layer : made.plan.heads) {
      for (int index : layer) ++uses[made.plan.programs[static_cast<size_t>(index)].id];
    }
    fmt::print("{}: {:.1f}% of the dense cache at {} tokens\n", out, 100 * made.kept,
               *std::max_element(o->make.lengths.begin(), o->make.lengths.end()));
    for (const auto& [id, count] : uses) fmt::print("  {:<20} {} heads\n", id, count);
  });
}

}  // namespace heed::cli
