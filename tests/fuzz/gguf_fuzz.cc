// GGUF: metadata through every getter, tensors de-quantised, and the model and tokenizer that the
// metadata describe.
#include "io/gguf.h"

#include "fuzz.h"
#include "io/dequant.h"
#include "io/model_config.h"
#include "io/tokenizer/open.h"

namespace {

using namespace heed;

void read_values(const GgufFile& file) {
  for (const auto& entry : file.values) {
    const std::string& key = entry.first;
    fuzz::touch(entry.second.data);
    fuzz::attempt([&] { file.string(key); });
    fuzz::attempt([&] { file.integer(key); });
    fuzz::attempt([&] { file.real(key); });
    fuzz::attempt([&] { file.boolean(key); });
    fuzz::attempt([&] {
      for (const std::string_view text : file.strings(key)) fuzz::touch(fuzz::bytes_of(text));
    });
    fuzz::attempt([&] { file.integers(key); });
    fuzz::attempt([&] { file.reals(key); });
  }
}

void read_tensors(const GgufFile& file) {
  for (const TensorInfo& tensor : file.tensors) {
    fuzz::touch({tensor.data, tensor.bytes});
    if (tensor.elements() > 4096) continue;
    std::vector<float> out(static_cast<size_t>(tensor.elements()));
    fuzz::attempt([&] { dequantize_rows(tensor, 0, tensor.rows(), out.data()); });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::attempt([&] {
    const GgufFile file =
        parse_gguf(fuzz::bytes_of({reinterpret_cast<const char*>(data), size}), "f");
    read_values(file);
    read_tensors(file);
    fuzz::attempt([&] { fuzz::require(config_from_gguf(file).parameters() > 0); });
    fuzz::attempt([&] {
      const Tokenizer tokenizer = tokenizer_from_gguf(file);
      tokenizer.decode(tokenizer.encode("Hi  x\xFF<s> 12"));
    });
  });
  return 0;
}
