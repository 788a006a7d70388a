// A model with its tokenizer and the text that it is measured on: what inspect, plan, eval and demo
// start from.
#pragma once

#include <string>
#include <vector>

#include "data/corpus.h"
#include "io/progress.h"
#include "io/tokenizer/tokenizer.h"
#include "model/decoder.h"

namespace heed::eval {

struct Workbench {
  std::string path;  // of the model
  Decoder model;
  Tokenizer tokenizer;
  data::TextCodec codec;
};

// `model`: a folder, a file or a name of `heed models`.
Workbench open_workbench(const std::string& model, const LoadOptions& options = {},
                         Progress& progress = no_progress());

// The length to search and measure at when nobody says: 4096 tokens, or the model's context where
// that is shorter.
int64_t usual_length(const Decoder& model);

// The texts that come with Heed, from examples/ of home_folder(): a book to search plans on,
// another to evaluate them on, and all texts to evaluate on, each of a domain of its own. Throws
// Error if they are not there.
std::string search_book();
std::string test_book();
std::vector<std::string> test_texts();

// Text files (plain or .xz; documents cut at the line `<|endofbook|>`) as tokens of the workbench's
// model.
data::Corpus open_text(const Workbench& bench, const std::vector<std::string>& files);

}  // namespace heed::eval
