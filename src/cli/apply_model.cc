// heed apply model: see model/apply_model.h.
#include "model/apply_model.h"

#include "cache/plan_programs.h"
#include "cache/tensor_io.h"
#include "cli/apply.h"
#include "model/hub.h"
#include "model/source.h"

namespace heed::cli {
namespace {

int64_t whole(const std::string& key, const std::string& text) {
  size_t used = 0;
  int64_t value = -1;
  try {
    value = std::stoll(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (text.empty() || used != text.size() || value < 0) {
    throw UsageError("--set {}={}: a whole number, 0 or more, was expected", key, text);
  }
  return value;
}

}  // namespace

void run_apply_model(const ApplyArguments& arguments) {
  if (arguments.model.empty()) throw UsageError("`heed apply model` needs --model");
  if (!arguments.form.empty() || arguments.grad) {
    throw UsageError("--form and --grad go with mixers, not with `heed apply model`");
  }
  if (arguments.dtype == "float64")
    throw UsageError("`heed apply model` does not compute in float64");
  ApplyModelOptions options;
  for (const auto& [key, value] : arguments.settings) {
    if (key == "cache") {
      if (value != "true" && value != "false" && value != "1" && value != "0") {
        throw UsageError("--set cache={}: true or false was expected", value);
      }
      options.cache = value == "true" || value == "1";
    } else if (key == "prefill") {
      options.prefill = whole(key, value);
      if (options.prefill < 1) throw UsageError("--set prefill={}: 1 or more was expected", value);
    } else if (key == "greedy") {
      options.greedy = whole(key, value);
    } else {
      throw UsageError("--set {}: unknown; the settings are cache, prefill and greedy", key);
    }
  }
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
  load.dtype = arguments.dtype == "bfloat16"  ? at::kBFloat16
               : arguments.dtype == "float16" ? at::kHalf
                                              : at::kFloat;
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
