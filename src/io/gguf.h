// GGUF files, versions 2 and 3: typed metadata and tensors
// (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor_file.h"

namespace heed {

// Types of metadata values, numbered as in the file.
enum class GgufType : uint32_t {
  U8 = 0,
  I8 = 1,
  U16 = 2,
  I16 = 3,
  U32 = 4,
  I32 = 5,
  F32 = 6,
  BOOL = 7,
  STRING = 8,
  ARRAY = 9,
  U64 = 10,
  I64 = 11,
  F64 = 12,
};

// One metadata value, still where the file has it: arrays of millions of entries cost nothing
// until they are asked for.
struct GgufValue {
  GgufType type = GgufType::U8;
  GgufType element = GgufType::U8;  // of an array
  uint64_t count = 1;               // of an array's elements
  std::span<const std::byte> data;  // a scalar's bytes, a string's text, an array's elements
};

// A read GGUF file. Tensor shapes are row-major: the file's dimensions in reverse. Views into the
// file (`data`, string_views of strings()) stay valid while a copy of the object lives.
struct GgufFile : TensorFile {
  uint32_t version = 0;
  uint64_t alignment = 32;
  std::map<std::string, GgufValue, std::less<>> values;

  bool has(std::string_view key) const { return values.find(key) != values.end(); }

  // Values by key; Error naming file, key and expected type if absent or of another type. Any
  // integer type that holds the value serves for integer(), any number for real().
  std::string string(std::string_view key) const;
  int64_t integer(std::string_view key) const;
  double real(std::string_view key) const;
  bool boolean(std::string_view key) const;
  std::vector<std::string_view> strings(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<float> reals(std::string_view key) const;

  // `fallback` where the key is absent; Error if present with another type.
  std::string string(std::string_view key, std::string_view fallback) const;
  int64_t integer(std::string_view key, int64_t fallback) const;
  double real(std::string_view key, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;

 private:
  const GgufValue& value(std::string_view key) const;
};

// Reads a model's file. Where it is one of several that `gguf-split` made of a model
// (NAME-00001-of-000NN.gguf; any of them may be given), all are read: the values are those of the
// first, the tensors those of all, `path` is the first's. Parts that are missing, of another model
// or out of place are errors that name them. Counts and lengths are bounded by the bytes that are
// left before anything is allocated; keys and names that stand twice, unknown types, shapes that
// overflow, tensors that overlap, leave gaps beyond the alignment or end beyond the file are errors
// that name it.
GgufFile open_gguf(const std::string& path);

// One file from memory, a part or a whole; `bytes` must outlive the result. `name` stands for the
// file in messages.
GgufFile parse_gguf(std::span<const std::byte> bytes, const std::string& name);

}  // namespace heed
