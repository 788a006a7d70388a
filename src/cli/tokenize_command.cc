// heed tokenize: strings to ids and back, nothing added, nothing cut.
#include "cli/command.h"
#include "io/tokenizer/open.h"
#include "io/tokenizer/tokenize_file.h"
#include "model/hub.h"

namespace heed::cli {

void add_tokenize(CLI::App& app) {
  auto* command = app.add_subcommand("tokenize", "Turn strings into token ids, or back");
  struct Options {
    std::string model, in, out;
    bool decode = false;
  };
  auto options = std::make_shared<Options>();
  command->add_option("model", options->model, "A folder, a .gguf file or a name (heed models)")
      ->required();
  command->add_option("--in", options->in, "JSON list of strings (with --decode: of lists of ids)")
      ->required();
  command
      ->add_option("--out", options->out, "JSON list of lists of ids (with --decode: of strings)")
      ->required();
  command->add_flag("--decode", options->decode, "From ids to strings");
  command->callback([options] {
    const auto progress = make_progress();
    const Tokenizer tokenizer = open_tokenizer(resolve_model(options->model, *progress));
    options->decode ? detokenize_file(tokenizer, options->in, options->out)
                    : tokenize_file(tokenizer, options->in, options->out);
  });
}

}  // namespace heed::cli
