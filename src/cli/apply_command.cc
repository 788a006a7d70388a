// heed apply: the core of a mixer, or a whole model, on given tensors.
#include "cli/apply.h"

#include "cache/tensor_io.h"
#include "cli/command.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "mixer/apply.h"

namespace heed::cli {
namespace {

void run_apply_mixer(const ApplyArguments& arguments) {
  if (!arguments.model.empty() || !arguments.plan.empty()) {
    throw UsageError("--model and --plan go with `heed apply model`, not with {}", arguments.id);
  }
  const mixer::Mechanism& mechanism = mixer::find_mechanism(arguments.id);
  mixer::ApplyOptions options;
  options.form = arguments.form;
  options.device = at::Device(arguments.device);
  options.dtype = dtype_from_name(arguments.dtype);
  options.settings = arguments.settings;
  options.grad = arguments.grad;
  write_tensors(arguments.out, mixer::apply(mechanism, read_tensors(arguments.in), options));
}

}  // namespace

void add_apply(CLI::App& app) {
  auto* command =
      app.add_subcommand("apply", "Run the core of a mixer, or a model, on given tensors");
  auto arguments = std::make_shared<ApplyArguments>();
  auto common = std::make_shared<CommonOptions>();
  auto settings = std::make_shared<std::vector<std::string>>();
  command->add_option("ID", arguments->id, "A mixer of `heed list`, or the word model")->required();
  common
      ->add_input(command, "--in", arguments->in,
                  "Input tensors (safetensors); `heed show ID` names them")
      ->required();
  common->add_out(command, "Output tensors (safetensors)")->required();
  command
      ->add_option("--form", arguments->form,
                   "naive, parallel, chunked, recurrent or fft; `heed show ID` names a mixer's own")
      ->check(CLI::IsMember({"naive", "parallel", "chunked", "recurrent", "fft"}));
  command->add_option("--device", arguments->device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  command
      ->add_option("--dtype", arguments->dtype,
                   "Type of the token tensors; float64 goes with --form naive")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16", "float64"}));
  command->add_option("--set", *settings, "KEY=VALUE, a setting; may be repeated")
      ->type_size(1)
      ->expected(1)
      ->take_all();
  command->add_flag("--grad", arguments->grad,
                    "Read grad_out (and grad_final_...) and write the gradient of every input");
  common->add_input(command, "--model", arguments->model,
                    "With the word model: folder, GGUF file or name");
  common->add_input(command, "--plan", arguments->plan, "With the word model: a plan file");
  common->add_threads(command);
  add_examples(command, {"heed apply gla --in in.safetensors --out out.safetensors",
                         "heed apply gla --in in.safetensors --out reference.safetensors --form "
                         "naive --dtype float64"});
  command->callback([arguments, common, settings] {
    for (const std::string& text : *settings) {
      const size_t equals = text.find('=');
      if (equals == std::string::npos || equals == 0) {
        throw UsageError("--set {}: expected KEY=VALUE", text);
      }
      arguments->settings.emplace_back(text.substr(0, equals), text.substr(equals + 1));
    }
    common->device = arguments->device;
    common->apply();
    arguments->out = common->out;
    if (arguments->id == "model") {
      run_apply_model(*arguments);
    } else {
      run_apply_mixer(*arguments);
    }
  });
}

}  // namespace heed::cli
