// heed train: a model from a configuration file.
#include <fmt/format.h>

#include <cmath>

#include "cli/command.h"
#include "cli/options.h"
#include "io/json.h"
#include "train/config.h"
#include "train/trainer.h"

namespace heed::cli {

void add_train(CLI::App& app) {
  auto* command = app.add_subcommand("train", "Train a model from a TOML file");
  struct Options {
    CommonOptions common;
    std::string config, device, out;
    std::vector<std::string> set;
    bool resume = false, keys = false;
  };
  auto options = std::make_shared<Options>();
  options->common.add_input(command, "CONFIG", options->config,
                            "Configuration (see docs/train.md)");
  command->add_flag("--resume", options->resume, "Go on from the run folder's newest checkpoint");
  command->add_option("--device", options->device, "cpu or cuda, in place of the file's")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  command->add_option("--out", options->out, "Run folder, in place of the file's");
  command->add_option("--set", options->set, "KEY=VALUE in place of the file's; may be repeated")
      ->type_size(1)
      ->expected(1)
      ->take_all();
  options->common.add_threads(command);
  options->common.add_json(command);
  command->add_flag("--keys", options->keys, "List every key with its default, and leave");
  add_examples(command, {"heed train examples/builtin.toml --device cuda"});
  command->callback([command, options] {
    if (options->keys) {
      refuse(*command, {"CONFIG", "--resume", "--device", "--out", "--set", "--threads", "--json"},
             "has no effect with --keys");
      fmt::print("{}", train::config_table());
      return;
    }
    if (options->config.empty())
      throw UsageError("train needs a configuration file; docs/train.md shows one");
    expect_folder(options->out);
    options->common.apply();
    auto settings = options->set;
    if (!options->device.empty()) settings.push_back("device=\"" + options->device + "\"");
    if (!options->out.empty()) settings.push_back("out=\"" + options->out + "\"");
    const auto config = train::read_config(options->config, settings);
    const auto progress = make_progress();
    const auto result = train::train(config, options->resume, *progress);
    if (result.model.empty()) {
      fmt::print("stopped after {} of {} steps; go on with --resume\n", result.step,
                 config.train.steps);
      return;
    }
    if (options->common.json) {
      fmt::print("{}", pretty_json(result.report));
      return;
    }
    fmt::print("model: {}\n", result.model);
    for (const char* text : {"valid", "test"}) {
      if (!result.report.contains(text)) continue;
      fmt::print("{}: loss {:.4f}, perplexity {:.3f}\n", text,
                 result.report[text]["loss"].get<double>(),
                 result.report[text]["perplexity"].get<double>());
    }
  });
}

}  // namespace heed::cli
