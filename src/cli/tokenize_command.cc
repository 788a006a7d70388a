// heed tokenize: strings to ids and back, nothing added, nothing cut.
#include "cli/command.h"
#include "cli/options.h"
#include "io/tokenizer/open.h"
#include "io/tokenizer/tokenize_file.h"
#include "model/hub.h"

namespace heed::cli {

void add_tokenize(CLI::App& app) {
  auto* command = app.add_subcommand("tokenize", "Turn strings into token ids, or back");
  struct Options {
    CommonOptions common;
    std::string model, in;
    bool decode = false;
  };
  auto options = std::make_shared<Options>();
  options->common.add_model(command, options->model);
  options->common
      .add_input(command, "--in", options->in,
                 "JSON list of strings (with --decode: of lists of ids)")
      ->required();
  options->common.add_out(command, "JSON list of lists of ids (with --decode: of strings)")
      ->required();
  command->add_flag("--decode", options->decode, "From ids to strings");
  add_examples(command, {R"(echo '["Hello"]' | heed tokenize smollm2 --in - --out -)"});
  command->callback([options] {
    options->common.apply();
    const auto progress = make_progress();
    const Tokenizer tokenizer = open_tokenizer(resolve_model(options->model, *progress));
    options->decode ? detokenize_file(tokenizer, options->in, options->common.out)
                    : tokenize_file(tokenizer, options->in, options->common.out);
  });
}

}  // namespace heed::cli
