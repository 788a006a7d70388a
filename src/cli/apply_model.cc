// heed apply model: see model/apply_model.h.
#include "model/apply_model.h"

#include "cache/plan/plan_programs.h"
#include "cache/tensor_io.h"
#include "cli/apply.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "model/hub.h"
#include "model/source.h"

namespace heed::cli {
namespace {

// A setting that counts tokens: from `least` to what a sequence may have.
int64_t tokens_of(const std::string& key, std::string text, int64_t least) {
  const std::string wrong = whole(least, kMostTokens)(text);
  if (!wrong.empty()) throw UsageError("--set {}: {}", key, wrong);
  return std::stoll(text);
}

ApplyModelOptions options_of(const ApplyArguments& arguments) {
  ApplyModelOptions options;
  bool prefill = false;
  for (const auto& [key, value] : arguments.settings) {
    if (key == "cache") {
      if (value != "true" && value != "false" && value != "1" && value != "0") {
        throw UsageError("--set cache={}: true or false was expected", value);
      }
      options.cache = value == "true" || value == "1";
    } else if (key == "prefill") {
      options.prefill = tokens_of(key, value, 1);
      prefill = true;
    } else if (key == "greedy") {
      options.greedy = tokens_of(key, value, 0);
    } else {
      throw UsageError("--set {}: unknown; the settings are cache, prefill and greedy", key);
    }
  }
  if (prefill && !options.cache) {
    throw UsageError("--set prefill: has no effect without --set cache=true");
  }
  return options;
}

}  // namespace

void run_apply_model(const ApplyArguments& arguments) {
  if (arguments.model.empty()) throw UsageError("`heed apply model` needs --model");
  if (!arguments.form.empty() || arguments.grad) {
    throw UsageError("--form and --grad go with mixers, not with `heed apply model`");
  }
  if (arguments.dtype == "float64")
    throw UsageError("`heed apply model` does not compute in float64");
  ApplyModelOptions options = options_of(arguments);
  const NamedTensors in = read_tensors(arguments.in);
  for (const auto& [name, tensor] : in) {
    if (name != "input_ids") {
      throw UsageError("{}: tensor {} is not expected; the input is input_ids", arguments.in, name);
    }
  }
  const auto ids = in.find("input_ids");
  if (ids == in.end()) throw UsageError("{}: tensor input_ids is missing", arguments.in);
  if (ids->second.scalar_type() != at::kLong || ids->second.dim() != 2) {
    throw UsageError("{}: input_ids must be int64 [B, T]", arguments.in);
  }
  // The plan is checked before the weights are read.
  const std::string path = resolve_model(arguments.model);
  const ModelConfig config = ModelSource::open(path).config();
  LoadOptions load;
  load.dtype = dtype_from_name(arguments.dtype);
  load.device = at::Device(arguments.device);
  const int64_t tokens = ids->second.size(1) + options.greedy;
  load.context = config.learned_positions ? 0 : std::max(config.max_position, tokens);
  Programs programs;
  if (!arguments.plan.empty()) {
    const Plan plan = read_plan(arguments.plan);
    check_plan_fits(plan, arguments.plan, ModelSource::open(path).hash(), config.layers,
                    config.kv_heads, false);
    programs = resolve_programs(plan);
    options.programs = &programs;
  }
  const Decoder model = Decoder::load(path, load);
  write_tensors(arguments.out, apply_model(model, ids->second, options));
}

}  // namespace heed::cli
