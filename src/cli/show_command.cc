// heed show: the card of one system, and the row of its tensors for `heed apply`.
#include "cli/command.h"
#include "cli/options.h"
#include "io/json.h"
#include "mixer/apply.h"
#include "mixer/common/layer_options.h"
#include "mixer/registry.h"

namespace heed::cli {
namespace {

void print_field(const char* name, const std::string& text) {
  if (text.empty()) return;
  std::string indented;
  for (const char c : text) {
    indented += c;
    if (c == '\n') indented += std::string(11, ' ');
  }
  fmt::print("{:<10} {}\n", name, indented);
}

std::string state_of(const mixer::Card& card) {
  return card.state_size + (card.state_note.empty() ? "" : "; " + card.state_note);
}

Json tensors_json(const std::vector<mixer::TensorSpec>& specs) {
  Json rows = Json::array();
  for (const mixer::TensorSpec& spec : specs) {
    rows.push_back(
        {{"name", spec.name},
         {"shape", spec.shape},
         {"dtype", spec.dtype == mixer::Dtype::kFloat ? "float32" : mixer::dtype_name(spec.dtype)},
         {"by_dtype", spec.token},
         {"optional", spec.optional},
         {"group", spec.group},
         {"gradient", spec.grad},
         {"when", spec.when}});
  }
  return rows;
}

std::vector<mixer::LayerOption> options_of(const mixer::Card& card) {
  return card.has_layer ? mixer::layer_options(mixer::find_mechanism(card.id))
                        : std::vector<mixer::LayerOption>();
}

Json options_json(const mixer::Card& card) {
  Json rows = Json::array();
  for (const mixer::LayerOption& option : options_of(card)) {
    rows.push_back({{"name", option.name},
                    {"expected", option.expected},
                    {"default", option.fallback},
                    {"required", option.fallback.empty()}});
  }
  return rows;
}

void print_options(const mixer::Card& card) {
  const auto options = options_of(card);
  if (options.empty()) return;
  fmt::print("\nlayer options (model.mixers of heed train; defaults at hidden {}, {} heads)\n",
             mixer::kShownHidden, mixer::kShownHeads);
  for (const mixer::LayerOption& option : options) {
    fmt::print("  {:<16} {} ({})\n", option.name, option.expected,
               option.fallback.empty() ? "needed" : option.fallback);
  }
}

Json card_json(const mixer::Card& card) {
  Json settings = Json::array();
  for (const mixer::SettingSpec& spec : card.apply.settings) {
    settings.push_back({{"name", spec.name},
                        {"default", spec.default_value},
                        {"required", spec.required},
                        {"expected", mixer::expected(spec)},
                        {"words", spec.words}});
  }
  Json forms = Json::array();
  Json forms_when = Json::object();
  for (const mixer::FormSpec& form : card.apply.forms) {
    forms.push_back(form.name);
    forms_when[form.name] = form.when;
  }
  return {{"id", card.id},
          {"title", card.title},
          {"family", card.family},
          {"kind", card.kind},
          {"status", card.ready ? "ready" : "planned"},
          {"paper", card.paper},
          {"equations", card.equations},
          {"patterns", card.ready ? card.patterns : ""},
          {"state", state_of(card)},
          {"layer", card.has_layer},
          {"layer_options", options_json(card)},
          {"try", card.try_line},
          {"apply",
           {{"inputs", tensors_json(card.apply.inputs)},
            {"settings", settings},
            {"outputs", tensors_json(card.apply.outputs)},
            {"forms", forms},
            {"forms_when", forms_when}}}};
}

void print_card(const mixer::Card& card) {
  print_field("id", card.id);
  print_field("title", card.title);
  print_field("family", card.family);
  print_field("kind", card.kind);
  print_field("status", card.ready ? "ready" : "planned");
  print_field("paper", card.paper);
  print_field("equations", card.equations);
  if (!card.ready) return;
  print_field("patterns", card.patterns);
  print_field("state", state_of(card));
  print_field("layer", card.has_layer ? "yes" : "no");
  print_field("try", card.try_line);
  fmt::print("\nheed apply {}\n{}", card.id, mixer::describe(card.apply));
  print_options(card);
}

}  // namespace

void add_show(CLI::App& app) {
  auto* command = app.add_subcommand("show", "Show the card of a system, or of several");
  struct Options {
    CommonOptions common;
    std::vector<std::string> ids;
  };
  auto options = std::make_shared<Options>();
  command->add_option("ID", options->ids, "As in `heed list`; with several --json gives a list")
      ->required();
  options->common.add_json(command);
  add_examples(command, {"heed show gla"});
  command->callback([options] {
    std::vector<const mixer::Card*> cards;
    for (const std::string& id : options->ids) cards.push_back(&mixer::find_card(id));
    if (options->common.json) {
      Json list = Json::array();
      for (const mixer::Card* card : cards) list.push_back(card_json(*card));
      fmt::print("{}", pretty_json(list.size() == 1 ? list[0] : list));
      return;
    }
    for (const mixer::Card* card : cards) {
      if (card != cards[0]) fmt::print("\n");
      print_card(*card);
    }
  });
}

}  // namespace heed::cli
