// heed quantize: a model as a GGUF file in other types.
#include <fmt/format.h>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/streams.h"
#include "io/json.h"
#include "model/quantize.h"

namespace heed::cli {

void add_quantize(CLI::App& app) {
  auto* command = app.add_subcommand("quantize", "Write a model as a GGUF file in other types");
  struct Options {
    CommonOptions common;
    std::string model, type = "q4_0";
  };
  auto options = std::make_shared<Options>();
  options->common.add_model(command, options->model);
  command->add_option("--type", options->type, "Of matrices: f32, f16, bf16, q8_0, q4_1 or q4_0")
      ->check(CLI::IsMember(quantised_types()))
      ->capture_default_str();
  options->common.add_out(command, "The GGUF file to write")->required();
  options->common.add_threads(command);
  options->common.add_json(command);
  add_examples(command, {"heed quantize smollm2 --type q4_0 --out smollm2-q4_0.gguf"});
  command->callback([options] {
    options->common.apply();
    const auto progress = make_progress();
    const QuantizeResult result =
        quantize_model(options->model, options->type, options->common.out, *progress);
    if (options->common.json) {
      fmt::print("{}", pretty_json({{"out", options->common.out},
                                    {"type", options->type},
                                    {"tensors", result.tensors},
                                    {"parameters", result.parameters},
                                    {"bytes", result.bytes}}));
    } else {
      fmt::print(options->common.table(), "{}: {} tensors, {:.1f} million parameters, {:.1f} MB\n",
                 as_given(options->common.out), result.tensors,
                 static_cast<double>(result.parameters) / 1e6,
                 static_cast<double>(result.bytes) / 1e6);
    }
  });
}

}  // namespace heed::cli
