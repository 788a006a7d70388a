// heed info: what a model is made of.
#include "cli/command.h"
#include "cli/options.h"
#include "cli/streams.h"
#include "model/info.h"

namespace heed::cli {
namespace {

std::string megabytes(int64_t bytes) {
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

void print_table(const Json& info) {
  const auto row = [](const char* key, const std::string& value) {
    fmt::print("{:<16} {}\n", key, value);
  };
  const Json& s = info["shapes"];
  row("model", info["path"]);
  std::string types;
  for (const auto& [type, bytes] : info["stored_types"].items()) {
    types += fmt::format("{}{} {}", types.empty() ? "" : ", ", type, megabytes(bytes));
  }
  row("format", fmt::format("{} ({})", info["format"].get<std::string>(), types));
  row("family", info["family"]);
  row("parameters", fmt::format("{:.1f} million", info["parameters"].get<double>() / 1e6));
  row("layers", s["layers"].dump());
  row("hidden", fmt::format("{}, intermediate {}", s["hidden"].dump(), s["intermediate"].dump()));
  row("heads", fmt::format("{} query, {} key/value, dimension {}", s["heads"].dump(),
                           s["kv_heads"].dump(), s["head_dim"].dump()));
  row("vocabulary", fmt::format("{}{}", s["vocab"].dump(),
                                s["tied_embeddings"].get<bool>() ? ", tied embeddings" : ""));
  row("context", info["context"].dump());
  if (info.contains("rope")) {
    row("rotary", fmt::format("base {}, scaling {}", info["rope"]["base"].dump(),
                              info["rope"]["type"].get<std::string>()));
  }
  int64_t sliding = 0;
  for (const Json& w : info["windows"]) sliding = std::max(sliding, w.get<int64_t>());
  if (sliding > 0) row("sliding window", std::to_string(sliding));
  for (const auto& [layer, id] : info["mixers"].items()) {
    row("mixer", fmt::format("layer {}: {}", layer, id.get<std::string>()));
  }
  if (info["tokenizer"].is_null()) {
    row("tokenizer", info.value("tokenizer_error", "none"));
  } else {
    const Json& t = info["tokenizer"];
    row("tokenizer", fmt::format("{} tokens, begin {}, end {}", t["vocab"].dump(), t["bos"].dump(),
                                 t["eos"].dump()));
  }
  row("chat template",
      info["chat_template"].get<std::string>().empty() ? "none" : "yes (--json shows it)");
  row("plan hash", info["plan_hash"]);
  fmt::print("\nkeys and values of one sequence, every head full\n{:>10} {:>12} {:>12}\n", "tokens",
             "float16", "float32");
  for (const Json& r : info["kv_bytes"]) {
    fmt::print("{:>10} {:>12} {:>12}\n", r["tokens"].dump(), megabytes(r["float16"]),
               megabytes(r["float32"]));
  }
}

}  // namespace

void add_info(CLI::App& app) {
  auto* command = app.add_subcommand("info", "Show what a model is made of");
  auto common = std::make_shared<CommonOptions>();
  auto model = std::make_shared<std::string>();
  common->add_model(command, *model);
  common->add_json(command);
  add_examples(command, {"heed info smollm2 --json"});
  command->callback([common, model] {
    common->apply();
    Json info = model_info(*model);
    info["path"] = as_given(info["path"]);
    if (common->json) {
      fmt::print("{}", pretty_json(info));
    } else {
      print_table(info);
    }
  });
}

}  // namespace heed::cli
