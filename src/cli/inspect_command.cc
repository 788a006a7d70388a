// heed inspect: what every attention head of a model does.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>

#include "cli/command.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "eval/workbench.h"
#include "io/atomic_file.h"
#include "probe/figures.h"

namespace heed::cli {
namespace {

void print_table(std::FILE* to, const std::string& model, const probe::Figures& figures) {
  fmt::print(to, "{} at {} tokens; figures per query head, over queries from {} on\n\n", model,
             figures.context, figures.from);
  fmt::print(to, "{:>5} {:>4} {:>7} {:>9} {:>8} {:>7} {:>7} {:>7} {:>10} {:>9}\n", "layer", "head",
             "sink", "within 64", "entropy", "repeat", "echo", "needle", "importance", "peak");
  for (size_t l = 0; l < figures.heads.size(); ++l) {
    for (size_t h = 0; h < figures.heads[l].size(); ++h) {
      const auto& f = figures.heads[l][h];
      fmt::print(to,
                 "{:>5} {:>4} {:>7.3f} {:>9.3f} {:>8.3f} {:>7.3f} {:>7.3f} {:>7.3f} {:>10.3g} "
                 "{:>9.4f}\n",
                 l, h, f.sink, f.local.size() > 3 ? f.local[3] : 1.0, f.entropy, f.repeat, f.echo,
                 f.needle, f.importance, f.peak);
    }
  }
  if (!figures.other_weights.empty()) {
    fmt::print(to, "\nwithout figures: layer{} {}, whose weights are no softmax of q.k alone\n",
               figures.other_weights.size() > 1 ? "s" : "", fmt::join(figures.other_weights, ", "));
  }
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto* command = app.add_subcommand(
      "inspect", "Per layer and head: sinks, locality, entropy, retrieval, importance");
  struct Options {
    CommonOptions common;
    std::string model;
    std::vector<std::string> data;
    int64_t context = 2048, texts = 1;
    bool no_importance = false;
  };
  auto o = std::make_shared<Options>();
  o->common.add_model(command, o->model);
  o->common
      .add_input(command, "--data", o->data, "Text files, plain or .xz (default: a book of Heed's)")
      ->check(input_file());
  command->add_option("--context", o->context, "Tokens of each text")
      ->check(whole(64, kMostTokens))
      ->capture_default_str();
  command->add_option("--texts", o->texts, "Texts, repeated passages and needle documents, each")
      ->check(whole(1, 1000))
      ->capture_default_str();
  command->add_flag("--no-importance", o->no_importance, "Leave out the backward pass");
  o->common.add_json(command);
  o->common.add_compute(command);
  o->common.add_seed(command);
  o->common.add_out(command, "File for the JSON");
  add_examples(command, {"heed inspect smollm2 --context 2048"});
  command->callback([o] {
    o->common.apply();
    auto progress = make_progress();
    const auto bench = eval::open_workbench(o->model, load_options(o->common), *progress);
    const int64_t context = std::min(o->context, bench.model.context());
    const auto corpus =
        eval::open_text(bench, o->data.empty() ? std::vector{eval::search_book()} : o->data);
    data::RecallGenerator generator(corpus, bench.codec);
    generator.use_wording(eval::best_wording(bench.model, generator, context));
    auto inputs = probe::make_inputs(generator, corpus, context, o->texts, o->common.seed);
    inputs.importance = !o->no_importance;
    const auto figures = probe::measure_heads(bench.model, inputs, *progress);
    Json json = probe::to_json(figures);
    json["model"] = {{"name", o->model}, {"hash", bench.model.hash()}};
    if (!o->common.out.empty()) write_text_atomic(o->common.out, json.dump(1) + "\n");
    if (o->common.json) {
      std::puts(json.dump(1).c_str());
      return;
    }
    print_table(o->common.table(), o->model, figures);
  });
}

}  // namespace heed::cli
