// What corpora and generators need of a tokenizer, as values: so that tests can use a byte codec
// and the generators need not know where a tokenizer came from.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace heed::data {

struct TextCodec {
  // Plain text to token ids; adds no special tokens. May be called by several threads at once.
  std::function<std::vector<int32_t>(std::string_view)> encode;
  // Token ids to text.
  std::function<std::string(std::span<const int32_t>)> decode;
  int64_t vocab_size = 0;
  int32_t end_of_text = -1;  // the token that ends a document; -1: the tokenizer has none
  std::string hash;          // tokenizers with equal hashes encode alike; names cached token files
};

// Every byte is a token, 256 ends a text. For tests and for models of bytes.
TextCodec byte_codec();

}  // namespace heed::data
