#include "data/tokenizer_codec.h"

#include "io/sha256.h"

namespace heed::data {

TextCodec tokenizer_codec(const Tokenizer& tokenizer, const std::string& identity) {
  Sha256 hash;
  hash.update(identity);
  TextCodec codec;
  codec.encode = [tokenizer](std::string_view text) {
    return tokenizer.encode(text, /*parse_special=*/false);
  };
  codec.decode = [tokenizer](std::span<const int32_t> ids) { return tokenizer.decode_bytes(ids); };
  codec.vocab_size = tokenizer.vocab_size();
  codec.end_of_text = tokenizer.special().eos;
  codec.hash = hash.hex();
  return codec;
}

}  // namespace heed::data
