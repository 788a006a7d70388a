// heed list: every system, ready and planned.
#include "cli/command.h"
#include "cli/options.h"
#include "io/json.h"
#include "mixer/registry.h"

namespace heed::cli {

void add_list(CLI::App& app) {
  auto* command = app.add_subcommand("list", "List every mechanism and system with its status");
  struct Options {
    CommonOptions common;
    std::string family, status;
  };
  auto options = std::make_shared<Options>();
  command->add_option("--family", options->family,
                      "Only this family (dense, linear, recurrent, ...)");
  command->add_option("--status", options->status, "Only ready or planned ones")
      ->check(CLI::IsMember({"ready", "planned"}));
  options->common.add_json(command);
  add_examples(command, {"heed list --family linear"});
  command->callback([options] {
    std::vector<mixer::Card> chosen;
    std::string families;
    bool known = options->family.empty();
    for (const mixer::Card& card : mixer::cards()) {
      if (!families.ends_with(card.family))
        families += (families.empty() ? "" : ", ") + card.family;
      known |= card.family == options->family;
      if (!options->family.empty() && card.family != options->family) continue;
      if (!options->status.empty() && card.ready != (options->status == "ready")) continue;
      chosen.push_back(card);
    }
    if (!known) {
      throw UsageError("there is no family {}; families: {}", options->family, families);
    }
    if (options->common.json) {
      Json rows = Json::array();
      for (const mixer::Card& card : chosen) {
        rows.push_back({{"id", card.id},
                        {"family", card.family},
                        {"kind", card.kind},
                        {"title", card.title},
                        {"status", card.ready ? "ready" : "planned"},
                        {"patterns", card.ready ? card.patterns : ""},
                        {"layer", card.has_layer}});
      }
      fmt::print("{}", pretty_json(rows));
      return;
    }
    size_t ready = 0;
    fmt::print("{:<27} {:<17} {:<8} {}\n", "ID", "FAMILY", "STATUS", "TITLE");
    for (const mixer::Card& card : chosen) {
      ready += card.ready;
      fmt::print("{:<27} {:<17} {:<8} {}\n", card.id, card.family, card.ready ? "ready" : "planned",
                 card.title);
    }
    fmt::print("{} systems, {} ready\n", chosen.size(), ready);
  });
}

}  // namespace heed::cli
