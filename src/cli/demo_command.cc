// heed demo: the whole loop on one model, as a table, a page and JSON.
#include <cstdio>

#include "cli/command.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "lab/demo.h"

namespace heed::cli {

void add_demo(CLI::App& app) {
  auto* command = app.add_subcommand(
      "demo", "Measure heads, choose plans, run with them, measure again; writes report.html");
  struct Options {
    CommonOptions common;
    lab::DemoOptions demo;
    std::string kv_dtype;
  };
  auto o = std::make_shared<Options>();
  o->demo.seed = 1;
  o->common
      .add_input(command, "--model", o->demo.model, "Folder, .gguf file or name of `heed models`")
      ->capture_default_str();
  command->add_option("--context", o->demo.context, "Tokens of every text")
      ->check(whole(256, kMostTokens))
      ->capture_default_str();
  command->add_flag("--quick", o->demo.quick, "2048 tokens, one budget, smaller samples");
  command->add_option("--budgets", o->demo.budgets, "Shares of the dense cache, e.g. 0.5,0.3,0.2")
      ->delimiter(',')
      ->check(real(0, 1, true));
  command
      ->add_option("--controls", o->demo.controls,
                   "Shuffled plans to compare with (default: 3, with --quick 2)")
      ->check(whole(0, 100));
  command->add_option("--search-texts", o->demo.search_texts, "Texts that heads are scored on")
      ->check(whole(1, 1000));
  command->add_option("--check-texts", o->demo.check_texts, "Texts that candidates are run on")
      ->check(whole(1, 1000));
  command->add_option("--texts", o->demo.eval_texts, "Texts for perplexity")
      ->check(whole(1, 10000));
  command->add_option("--documents", o->demo.eval_documents, "Documents with needles")
      ->check(whole(1, 10000));
  command->add_option("--needles", o->demo.needles, "Needles a document")
      ->check(whole(1, 256))
      ->capture_default_str();
  command->add_option("--candidates", o->demo.candidates, "Joint allocations run in the search")
      ->check(whole(2, 10));
  command->add_option("--repairs", o->demo.repairs, "Heads that the repair tries with a full cache")
      ->check(whole(0, 10));
  o->common
      .add_input(command, "--data", o->demo.search_files,
                 "Text to search on (default: a book of Heed's)")
      ->check(input_file());
  o->common
      .add_input(command, "--test", o->demo.test_files,
                 "Text to evaluate on (default: another book)")
      ->check(input_file());
  add_kv_dtype(command, o->kv_dtype);
  o->common.add_json(command);
  o->common.add_compute(command);
  o->demo.out = "report";
  command->add_option("--out", o->demo.out, "Folder for report.html, report.json and the plans")
      ->capture_default_str();
  command->add_flag("--fresh", o->demo.fresh,
                    "Measure again what an earlier run into the same folder has measured");
  command->add_option("--seed", o->demo.seed, "Of needles, questions and shuffles")
      ->check(seeds())
      ->capture_default_str();
  add_examples(command, {"heed demo --quick"});
  auto* context = command->get_option("--context");
  command->callback([o, context] {
    expect_folder(o->demo.out);
    o->common.apply();
    if (o->demo.quick && context->count() == 0) o->demo.context = 2048;
    o->demo.load = load_options(o->common);
    o->demo.kv_dtype = kv_dtype(o->kv_dtype, o->demo.load);
    auto progress = make_progress();
    const auto report = lab::run_demo(o->demo, *progress);
    if (o->common.json) {
      std::puts(report.dump(1).c_str());
    } else {
      std::fputs(lab::demo_table(report).c_str(), stdout);
      std::printf("\n%s/report.html\n", o->demo.out.c_str());
    }
  });
}

}  // namespace heed::cli
