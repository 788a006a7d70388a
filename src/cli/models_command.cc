// heed models: the models that Heed knows by name.
#include "cli/command.h"
#include "io/json.h"
#include "model/hub.h"

namespace heed::cli {

void add_models(CLI::App& app) {
  auto* command = app.add_subcommand("models", "List the models that can be used by name");
  auto common = std::make_shared<CommonOptions>();
  common->add_json(command);
  command->callback([common] {
    const auto models = known_models();
    if (common->json) {
      Json out = Json::array();
      for (const KnownModel& m : models) {
        out.push_back({{"name", m.name},
                       {"description", m.description},
                       {"licence", m.licence},
                       {"download_bytes", m.download_bytes},
                       {"path", m.path}});
      }
      fmt::print("{}", pretty_json(out));
      return;
    }
    for (const KnownModel& m : models) {
      const std::string where = !m.path.empty()        ? m.path
                                : m.download_bytes > 0 ? fmt::format("fetched on first use, {} MB",
                                                                     m.download_bytes / 1000000)
                                                       : "not there";
      fmt::print("{:<10} {} ({})\n{:<10} {}\n", m.name, m.description, m.licence, "", where);
    }
    fmt::print(
        "\nEvery command also takes a Hugging Face folder, a .gguf file or a llama2.c .bin "
        "file.\n");
  });
}

}  // namespace heed::cli
