// tokenizer.json: what is accepted encodes and decodes any text, and streams what it decodes.
#include <string>
#include <vector>

#include "fuzz.h"
#include "io/tokenizer/tokenizer.h"
#include "io/tokenizer/unicode.h"
#include "json_mutator.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heed;
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  fuzz::attempt([&] {
    const Tokenizer tokenizer = Tokenizer::from_tokenizer_json(json, "f");
    // A few texts of all kinds, and a part of the file itself, which may be no UTF-8.
    const std::string texts[] = {
        "", "Hello  world 123\n\n\tdon't", "e\xCC\x81 \xC4\xB0 \xF0\x9F\x98\x80 ab<s>ab",
        std::string(80, 'a') + std::string(40, ' '), std::string(json.substr(size / 2, 60))};
    for (const std::string& text : texts) {
      fuzz::attempt([&] {
        const std::vector<int32_t> ids = tokenizer.encode(text);
        const std::string decoded = tokenizer.decode(ids);
        fuzz::require(unicode::is_valid(decoded));
        StreamDecoder stream(tokenizer, false);
        std::string streamed;
        for (const int32_t id : ids) streamed += stream.push(id);
        streamed += stream.finish();
        fuzz::require(unicode::is_valid(streamed));
      });
    }
  });
  return 0;
}
