// What a Tokenizer is made of; filled by the readers of the formats, run by tokenizer.cc.
#pragma once

#include <set>

#include "io/tokenizer/added_tokens.h"
#include "io/tokenizer/parts.h"
#include "io/tokenizer/tokenizer.h"

namespace heed {

struct Tokenizer::Parts {
  std::string file;  // for messages

  tok::AddedTokenMatcher added;                            // searched in the text as it came
  tok::AddedTokenMatcher added_normalized;                 // searched after normalization
  std::shared_ptr<const tok::Normalizer> normalizer;       // null: none
  std::shared_ptr<const tok::PreTokenizer> pre_tokenizer;  // null: none
  std::shared_ptr<const tok::Model> model;
  std::shared_ptr<const tok::Decoder> decoder;  // null: tokens are joined by blanks

  std::vector<std::string> id_to_token;
  size_t model_tokens = 0;  // of the vocabulary, without added ones
  int32_t last_added = -1;  // the largest id of an added token
  std::set<std::string> added_names;
  tok::Vocab token_to_id;  // the model's vocabulary and the added tokens
  std::vector<bool> is_special;
  SpecialTokens special;

  // Grows the tables so that `id` is one of them; Error where it is negative or absurdly large.
  void set_token(int64_t id, const std::string& token);
  // One more added token, under `token.id`; one that is known as such stays as it is.
  void add(const tok::AddedToken& token);
  // The id that `tokenizers` gives an added token whatever its file says: the vocabulary's, else
  // one behind all others.
  int32_t id_for_added(const std::string& content) const;
};

}  // namespace heed
