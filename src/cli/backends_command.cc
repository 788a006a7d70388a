// heed backends: the engines' calls, their fields, and which backend takes a call, or why not.
#include "cli/command.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "io/error.h"
#include "io/json.h"
#include "op/cuda_plugin.h"
#include "op/dispatch.h"
#include "op/library.h"
#include "op/view.h"

namespace heed::cli {
namespace {

struct BackendsArguments {
  CommonOptions common;
  std::string engine, shape;
};

// "T=4096,C=1024" -> sizes by name.
std::map<std::string, int64_t> read_sizes(const std::string& text) {
  std::map<std::string, int64_t> sizes;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    if (part.empty()) continue;
    const size_t equals = part.find('=');
    int64_t size = -1;
    if (equals == std::string::npos || !CLI::detail::lexical_cast(part.substr(equals + 1), size) ||
        size < 0) {
      throw UsageError("--shape {}: {} is no size, expected NAME=NUMBER as in T=4096", text, part);
    }
    sizes[part.substr(0, equals)] = size;
  }
  return sizes;
}

const char* device_name(int32_t device) { return device == HEED_CUDA ? "cuda" : "cpu"; }

Json describe(const op::Engine& engine, const BackendsArguments& options) {
  const kernel::CallFields& fields = engine.fields();
  Json tensors = Json::array(), settings = Json::array(), backends = Json::array();
  for (const auto& field : fields.tensors) {
    tensors.push_back({{"name", field.name},
                       {"role", kernel::kRoleNames[static_cast<int>(field.role)]},
                       {"shape", field.shape},
                       {"required", field.required},
                       {"note", field.note}});
  }
  for (const auto& option : fields.options) {
    Json value = option.value;
    if (option.kind == kernel::OptionKind::kMaybe) value = nullptr;
    if (option.kind == kernel::OptionKind::kWord) {
      value = option.words[static_cast<size_t>(option.value)];
    }
    settings.push_back({{"name", option.name}, {"default", value}, {"note", option.note}});
  }
  const auto sizes = read_sizes(options.shape);
  for (const auto& row :
       op::ask_backends(engine, sizes, op::view_dtype(dtype_from_name(options.common.dtype)))) {
    Json passes;
    for (const auto& [pass, reason] : row.passes)
      passes[pass] = reason.empty() ? "takes it" : reason;
    backends.push_back({{"name", row.backend->name},
                        {"device", device_name(row.backend->device)},
                        {"priority", row.backend->priority},
                        {"passes", passes}});
  }
  return {{"engine", fields.engine},
          {"equation", fields.equation},
          {"tensors", tensors},
          {"options", settings},
          {"backends", backends}};
}

void print(const Json& engine, bool fields) {
  fmt::print("{}: {}\n", engine["engine"].get<std::string>(),
             engine["equation"].get<std::string>());
  for (size_t i = 0; fields && i < engine["tensors"].size(); ++i) {
    const Json& t = engine["tensors"][i];
    fmt::print("  {:<14} {:<6} {:<18} {}{}\n", t["name"].get<std::string>(),
               t["role"].get<std::string>(), t["shape"].get<std::string>(),
               t["required"].get<bool>() ? "" : "optional; ", t["note"].get<std::string>());
  }
  for (size_t i = 0; fields && i < engine["options"].size(); ++i) {
    const Json& o = engine["options"][i];
    fmt::print("  {:<14} {:<6} {:<18} {}\n", o["name"].get<std::string>(), "option",
               fmt::format("default {}", o["default"].is_null() ? "none"
                                         : o["default"].is_string()
                                             ? o["default"].get<std::string>()
                                             : fmt::to_string(o["default"].get<double>())),
               o["note"].get<std::string>());
  }
  for (const Json& b : engine["backends"]) {
    fmt::print("  backend {} on {}, priority {}\n", b["name"].get<std::string>(),
               b["device"].get<std::string>(), b["priority"].get<int>());
    for (const auto& [pass, answer] : b["passes"].items()) {
      fmt::print("    {:<9} {}\n", pass, answer.get<std::string>());
    }
  }
  fmt::print("  elsewhere, and in float64: the naive form\n");
}

}  // namespace

void add_backends(CLI::App& app) {
  auto* command = app.add_subcommand(
      "backends", "Show the engines' calls, and which backend takes a call, or why not");
  auto options = std::make_shared<BackendsArguments>();
  command->add_option("ENGINE", options->engine, "Only this engine, with its tensors and options");
  command->add_option("--shape", options->shape,
                      "Sizes of the call asked about, as in T=4096,C=1024 (others: 64, B: 1)");
  command->add_option("--dtype", options->common.dtype, "float32, bfloat16 or float16")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  options->common.add_json(command);
  add_examples(command, {"heed backends ewscan --shape T=4096,C=1024"});
  command->callback([options] {
    op::link_library();
    Json list = Json::array();
    std::string names;
    for (const op::Engine* engine : op::engines()) {
      const std::string name = engine->fields().engine;
      names += (names.empty() ? "" : ", ") + name;
      if (options->engine.empty() || options->engine == name) {
        list.push_back(describe(*engine, *options));
      }
    }
    if (list.empty()) {
      throw UsageError("there is no engine {}; engines: {}", options->engine, names);
    }
    if (options->common.json) return fmt::print("{}", pretty_json(list));
    for (const Json& engine : list) print(engine, !options->engine.empty());
  });
}

}  // namespace heed::cli
