// A tokenizer as corpora and generators take it.
#pragma once

#include <string>

#include "data/codec.h"
#include "io/tokenizer/tokenizer.h"

namespace heed::data {

// `identity`: what the tokenizer came from (its file's bytes, or a path that names it); part of the
// key of cached token files. Special tokens are not parsed from text.
TextCodec tokenizer_codec(const Tokenizer& tokenizer, const std::string& identity);

}  // namespace heed::data
