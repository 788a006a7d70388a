// GGUF files, version 3, written (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/atomic_file.h"
#include "io/gguf.h"
#include "io/safetensors.h"

namespace heed {

// Metadata, in the order in which it is added; a key that is there already gets the new value.
class GgufMetadata {
 public:
  void string(const std::string& key, std::string_view value);
  void integer(const std::string& key, uint32_t value);
  void real(const std::string& key, float value);
  void boolean(const std::string& key, bool value);
  void strings(const std::string& key, const std::vector<std::string>& values);
  void integers(const std::string& key, const std::vector<int32_t>& values);
  void reals(const std::string& key, const std::vector<float>& values);
  // As another file has it.
  void copy(const std::string& key, const GgufValue& value);

  bool has(std::string_view key) const { return places_.contains(key); }
  size_t size() const { return entries_.size(); }
  // All entries as the file has them.
  std::string bytes() const;

 private:
  struct Entry {
    std::string key, value;  // the value with its type in front
  };
  void put(const std::string& key, std::string value);

  std::vector<Entry> entries_;
  std::map<std::string, size_t, std::less<>> places_;
};

// Writes tensors in their order, each whole or part by part; atomically: nothing appears under
// `path` before finish().
class GgufWriter {
 public:
  // Shapes are row-major, as GgufFile has them. Error for a name that stands twice, a type that
  // GGUF does not have, rows that are not whole blocks, a file that cannot be written.
  GgufWriter(const std::string& path, const GgufMetadata& metadata,
             std::vector<TensorSpec> tensors);

  // The next bytes of the tensor whose turn it is, by its name.
  void write(std::string_view name, const void* data, size_t bytes);
  // Error unless every tensor has been written whole.
  void finish();

 private:
  void skip_written();

  std::vector<TensorSpec> tensors_;
  std::vector<uint64_t> sizes_;
  size_t current_ = 0;
  uint64_t written_ = 0;  // of the current tensor
  AtomicFile file_;
};

}  // namespace heed
