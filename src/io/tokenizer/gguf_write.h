// The tokenizer of a Hugging Face folder as GGUF names it.
#pragma once

#include <string>

#include "io/gguf_writer.h"

namespace heed {

// Adds tokenizer.ggml.* and tokenizer.chat_template of the folder, whose model has `vocab` tokens.
// Byte-level BPE (tokenizer.json) whose splitting rule has a name in GGUF; throws Error saying what
// is not so.
void write_gguf_tokenizer(const std::string& folder, int64_t vocab, GgufMetadata& metadata);

}  // namespace heed
