// What GGUF files only name: the rule by which text is cut before merging (tokenizer.ggml.pre), and
// the tokens that end a text or a turn. Names, flags and lists are llama.cpp's
// (src/llama-vocab.cpp); the patterns are those of the tokenizer.json of the models that the rules
// are named after where llama.cpp has to spell them another way.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/tokenizer/parts.h"
#include "io/tokenizer/tokenizer.h"

namespace heed::tok {

struct GgufRule {
  std::shared_ptr<const PreTokenizer> pre_tokenizer;
  bool ignore_merges = false;  // a piece that is a token is taken whole
  bool add_bos = false;        // where the file has no tokenizer.ggml.add_bos_token
};

// The rule that tokenizer.ggml.pre names; "" is "default". Throws Error naming `file`, the name and
// those that are known.
GgufRule gguf_rule(const std::string& pre, const std::string& file);

// The first name of the rule whose patterns these are ("digits": digits one by one, "gpt2": the
// rule of byte-level BPE itself); nothing where there is none.
std::optional<std::string> gguf_rule_name(const std::vector<std::string>& patterns,
                                          bool ignore_merges);

// Does the rule put the begin token in front where the file does not say? False for names that
// are not known.
bool gguf_rule_adds_bos(const std::string& pre);

// Marks tokens that llama.cpp takes for control tokens by their text whatever type the file gives
// them, and adds all that end a text or a turn to `vocab.special.stop`.
void find_end_tokens(GgufVocab& vocab);

}  // namespace heed::tok
