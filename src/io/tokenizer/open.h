// Opens the tokenizer and the chat template that come with a model, wherever they are kept.
#pragma once

#include <string>

#include "io/gguf.h"
#include "io/tokenizer/tokenizer.h"

namespace heed {

// `path` is a Hugging Face folder (tokenizer.json, else tokenizer.model), a tokenizer.json, a
// .model (SentencePiece), a .gguf or a llama2.c tokenizer .bin. Special ids come from
// tokenizer_config.json, generation_config.json and config.json, or from the GGUF metadata. Throws
// Error naming what is missing or broken.
Tokenizer open_tokenizer(const std::string& path);

// The tokenizer part of a GGUF file's metadata.
GgufVocab read_gguf_vocab(const GgufFile& gguf);
Tokenizer tokenizer_from_gguf(const GgufFile& gguf);

// The chat template: chat_template.jinja, chat_template.json or tokenizer_config.json of a folder
// (of several the one named "default"), tokenizer.chat_template of a GGUF. Empty where there is
// none.
std::string read_chat_template(const std::string& path);

}  // namespace heed
