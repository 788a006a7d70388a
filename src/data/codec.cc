#include "data/codec.h"

namespace heed::data {

TextCodec byte_codec() {
  TextCodec codec;
  codec.encode = [](std::string_view text) {
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  };
  codec.decode = [](std::span<const int32_t> ids) {
    std::string text;
    for (const int32_t id : ids) {
      if (id < 256) text.push_back(static_cast<char>(id));
    }
    return text;
  };
  codec.vocab_size = 257;
  codec.end_of_text = 256;
  codec.hash = "bytes";
  return codec;
}

}  // namespace heed::data
