// heed tokenizer train: a byte-level BPE from text files.
#include <fmt/format.h>

#include "cli/command.h"
#include "cli/options.h"
#include "train/tokenizer.h"

namespace heed::cli {

void add_tokenizer(CLI::App& app) {
  auto* command = app.add_subcommand("tokenizer", "Make a tokenizer");
  command->require_subcommand(1);
  auto* train = command->add_subcommand("train", "Learn a byte-level BPE from text files");
  struct Options {
    CommonOptions common;
    std::vector<std::string> data;
    std::string separator, out;
    int64_t vocab_size = 8192;
  };
  auto options = std::make_shared<Options>();
  options->common.add_input(train, "--data", options->data, "Text files, plain or .xz")->required();
  train->add_option("--separator", options->separator, "Line between two documents of a file");
  train->add_option("--vocab-size", options->vocab_size, "Tokens, with <|endoftext|> and 256 bytes")
      ->check(whole(1, 10000000))
      ->capture_default_str();
  train->add_option("--out", options->out, "Folder for tokenizer.json")->required();
  add_examples(train,
               {"heed tokenizer train --data book.txt --vocab-size 4096 --out my-tokenizer"});
  train->callback([options] {
    expect_folder(options->out);
    options->common.apply();
    const auto progress = make_progress();
    train::train_tokenizer(options->data, options->separator, options->vocab_size, options->out,
                           *progress);
    fmt::print("{}/tokenizer.json: {} tokens\n", options->out, options->vocab_size);
  });
}

}  // namespace heed::cli
