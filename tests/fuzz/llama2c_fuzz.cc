// llama2.c checkpoints (first byte even) and tokenizers (odd).
#include "io/llama2c.h"

#include "fuzz.h"
#include "io/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heed;
  if (size == 0) return 0;
  // In a block of exactly this size, so that the sanitizer sees every step beyond it.
  const std::vector<char> exact(data + 1, data + size);
  const auto bytes = fuzz::bytes_of({exact.data(), exact.size()});
  fuzz::attempt([&] {
    if (data[0] % 2 != 0) {
      const Llama2cVocab vocab = parse_llama2c_vocab(bytes, "f");
      fuzz::require(vocab.pieces.size() == vocab.scores.size());
      return;
    }
    const Llama2cModel model = parse_llama2c(bytes, "f");
    for (const TensorInfo& tensor : model.file.tensors) fuzz::touch({tensor.data, tensor.bytes});
    fuzz::require(config_from_llama2c(model, "f").parameters() > 0);
  });
  return 0;
}
