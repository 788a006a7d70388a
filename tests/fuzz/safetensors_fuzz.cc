// Safetensors. The first byte chooses: the rest is a whole file, or a header and eight bytes of
// data behind a length that is right, so that mutations reach what lies behind the length.
#include "io/safetensors.h"

#include <cstring>

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace heed;
  if (size == 0) return 0;
  std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    const uint64_t length = text.size();
    text.insert(0, reinterpret_cast<const char*>(&length), sizeof length);
    text.append(8, '\1');
  }
  // In a block of exactly this size, so that the sanitizer sees every step beyond it.
  const std::vector<char> exact(text.begin(), text.end());
  fuzz::attempt([&] {
    const TensorFile file = parse_safetensors(fuzz::bytes_of({exact.data(), exact.size()}), "f");
    size_t total = 0;
    for (const TensorInfo& tensor : file.tensors) {
      fuzz::touch({tensor.data, tensor.bytes});
      fuzz::require(file.find(tensor.name) == &tensor);
      fuzz::require(count_bytes(tensor.shape, tensor.dtype) == static_cast<int64_t>(tensor.bytes));
      total += tensor.bytes;
    }
    fuzz::require(total <= exact.size());
  });
  return 0;
}
