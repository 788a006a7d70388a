// Lists of strings and lists of ids in JSON files: what `heed tokenize` does.
#pragma once

#include <string>

#include "io/tokenizer/tokenizer.h"

namespace heed {

// `in` holds a JSON list of strings; writes a list of as many lists of ids to `out`. Nothing is
// added, nothing is cut. UsageError where `in` is not that (half a surrogate pair is no text).
void tokenize_file(const Tokenizer& tokenizer, const std::string& in, const std::string& out);

// The reverse: lists of ids to strings. UsageError for an id outside the vocabulary.
void detokenize_file(const Tokenizer& tokenizer, const std::string& in, const std::string& out);

}  // namespace heed
