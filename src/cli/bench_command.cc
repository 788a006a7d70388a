// heed bench: timings beside PyTorch and beside what the machine can do.
#include <cstdio>
#include <filesystem>
#include <optional>

#include "bench/kernels.h"
#include "bench/markdown.h"
#include "bench/mixers.h"
#include "bench/model.h"
#include "cache/plan/plan_file.h"
#include "cache/plan/plan_programs.h"
#include "cli/command.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "cli/streams.h"
#include "io/atomic_file.h"
#include "io/text_file.h"

namespace heed::cli {
namespace {

// Opened before anything is timed, so that a folder that is not there is found out at once.
std::unique_ptr<AtomicFile> open_json(const std::string& path) {
  return path.empty() ? nullptr : std::make_unique<AtomicFile>(output_file(path));
}

void deliver(const Json& file, AtomicFile* json) {
  if (json) {
    const std::string text = pretty_json(file);
    json->write(text.data(), text.size());
    json->commit();
  }
  std::fputs(bench::text_table(file).c_str(),
             json && json->path() == kStandardOutput ? stderr : stdout);
}

void add_kernels(CLI::App* bench) {
  struct Options {
    CommonOptions common;
    bench::KernelOptions kernels;
    std::string json;
    bool list = false;
  };
  auto o = std::make_shared<Options>();
  auto* command =
      bench->add_subcommand("kernels", "Attention and scans: every pass, beside PyTorch");
  command->add_option("--filter", o->kernels.filter, "Only names with a match of this expression");
  command->add_option("--peers", o->kernels.peers, "Peers to time alternately, or none")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--json", o->json, "File for the records; -: standard output");
  command->add_flag("--quick", o->kernels.quick, "A few small shapes, under a minute");
  command->add_flag("--list", o->list, "Print the names and stop");
  o->common.add_device(command);
  add_examples(command, {"heed bench kernels --filter 'attend/forward.*D64'"});
  command->callback([command, o] {
    if (o->list) refuse(*command, {"--json", "--peers", "--threads"}, "has no effect with --list");
    o->common.apply();
    o->kernels.device = at::Device(o->common.device);
    if (o->list) {
      for (const auto& c : bench::choose_cases(o->kernels)) std::puts(c.name.c_str());
      return;
    }
    const auto json = open_json(o->json);
    auto progress = make_progress();
    deliver(bench::run_kernels(o->kernels, *progress), json.get());
  });
}

void add_mixers(CLI::App* bench) {
  struct Options {
    CommonOptions common;
    bench::MixerOptions mixers;
    std::string json;
  };
  auto o = std::make_shared<Options>();
  auto* command =
      bench->add_subcommand("mixers", "Every form of a mechanism's core beside its naive one");
  command->add_option("ID", o->mixers.ids, "Mechanisms; none: all that are ready");
  command->add_option("--tokens", o->mixers.tokens, "Lengths to time, separated by commas")
      ->delimiter(',')
      ->check(whole(1, kMostTokens))
      ->capture_default_str();
  command->add_option("--json", o->json, "File for the records; -: standard output");
  command->add_flag("--quick", o->mixers.quick, "Each form once or a few times");
  o->common.add_device(command);
  add_examples(command, {"heed bench mixers gla mamba --tokens 4096"});
  command->callback([o] {
    o->common.apply();
    o->mixers.device = at::Device(o->common.device);
    const auto json = open_json(o->json);
    auto progress = make_progress();
    const Json file = bench::run_mixers(o->mixers, *progress);
    deliver(file, json.get());
    for (const auto& [name, reason] : file.value("skipped", Json::object()).items()) {
      fmt::print(stderr, "not timed: {}: {}\n", name, reason.get<std::string>());
    }
  });
}

void add_model(CLI::App* bench) {
  struct Options {
    CommonOptions common;
    bench::ModelOptions model;
    std::string name, plan, kv_dtype, weights, json;
    bool force = false, random = false;
  };
  auto o = std::make_shared<Options>();
  auto* command = bench->add_subcommand("model", "Prefill and decoding, dense and under a plan");
  o->common.add_model(command, o->name);
  command->add_option("--context", o->model.context, "Tokens to read before decoding")
      ->check(whole(16, kMostTokens))
      ->capture_default_str();
  o->common.add_input(command, "--plan", o->plan, "Plan file to time beside the dense model")
      ->check(input_file());
  command->add_flag("--force", o->force, "Run a plan made for another model of the same shape");
  command->add_option("--rounds", o->model.rounds, "Times that each reads the whole context")
      ->check(whole(1, 100))
      ->capture_default_str();
  command->add_option("--steps", o->model.steps, "Tokens decoded a round")
      ->check(whole(1, 1000))
      ->capture_default_str();
  command->add_option("--batch", o->model.batch, "Also decode so many sequences side by side")
      ->check(whole(1, 1024))
      ->capture_default_str();
  command->add_flag("--random", o->random, "MODEL is a configuration: draw its weights");
  command->add_option("--peers", o->model.peers, "Peers to list, or none")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--json", o->json, "File for the records; -: standard output");
  command->add_flag("--quick", o->model.quick, "One round");
  add_kv_dtype(command, o->kv_dtype);
  add_weights(command, o->weights);
  o->common.add_compute(command);
  add_examples(command, {"heed bench model smollm2 --context 4096 --plan plan.json --json m.json",
                         "heed bench model bench/models/gla-100m.json --random --context 256 "
                         "--batch 8 --peers none"});
  command->callback([command, o] {
    if (o->plan.empty()) refuse(*command, {"--force"}, "goes with --plan");
    if (o->model.quick) refuse(*command, {"--rounds"}, "has no effect with --quick");
    o->common.apply();
    if (o->random) refuse(*command, {"--weights"}, "has no effect with --random");
    const auto load = load_options(o->common, o->random ? "exact" : o->weights, 0);
    o->model.kv_dtype = kv_dtype(o->kv_dtype, load);
    const auto json = open_json(o->json);
    auto progress = make_progress();
    const auto model = o->random
                           ? Decoder::random(parse_config(read_json(o->name), o->name), 1, load)
                           : Decoder::load(o->name, load);
    o->model.name = std::filesystem::path(as_given(o->name)).filename().string();
    std::optional<Programs> programs;
    if (!o->plan.empty()) {
      const auto plan = read_plan(o->plan);
      check_plan_fits(plan, o->plan, model.hash(), model.config().layers, model.config().kv_heads,
                      o->force);
      programs = resolve_programs(plan);
      o->model.programs = &*programs;
      o->model.plan = std::filesystem::path(as_given(o->plan)).stem().string();
    }
    deliver(bench::run_model(model, o->model, *progress), json.get());
  });
}

void add_table(CLI::App* bench) {
  struct Options {
    CommonOptions common;
    std::vector<std::string> files;
    std::string filter, into;
  };
  auto o = std::make_shared<Options>();
  auto* command = bench->add_subcommand("table", "Markdown tables of kept records");
  auto* files =
      o->common.add_input(command, "FILES", o->files, "What --json wrote")->check(input_file());
  command->add_option("--filter", o->filter, "Only names with a match of this expression");
  command
      ->add_option("--into", o->into, "Make the tables of this document anew, as their lines say")
      ->check(CLI::ExistingFile)
      ->excludes(files);
  add_examples(command, {"heed bench table k.json --filter 'scan/.*forward'"});
  command->callback([command, o] {
    if (!o->into.empty()) refuse(*command, {"--filter"}, "has no effect with --into");
    o->common.apply();
    if (!o->into.empty()) {
      const std::string folder = std::filesystem::absolute(o->into).parent_path().string();
      write_text_atomic(o->into, bench::refresh_tables(read_text_file(o->into), folder, o->into));
    } else if (!o->files.empty()) {
      std::fputs(bench::markdown_tables(o->files, o->filter).c_str(), stdout);
    } else {
      throw UsageError("bench table: name FILES of records, or a document by --into");
    }
  });
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* bench = app.add_subcommand("bench", "Times kernels and models beside others'");
  bench->require_subcommand(1);
  add_kernels(bench);
  add_mixers(bench);
  add_model(bench);
  add_table(bench);
}

}  // namespace heed::cli
