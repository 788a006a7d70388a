// Tensors as files hold them, described without any framework: name, type, shape and bytes.
// Safetensors, GGUF and llama2.c files all read into this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/mapped_file.h"

namespace heed {

// How elements are stored. The first group is one element at a time; the second, from Q4_0 on,
// holds blocks of a fixed number of elements (GGUF's quantised types, named as ggml names them);
// the third, from F8_E8M0 on, are safetensors' rarer types, those of less than a byte in blocks of
// whole bytes.
enum class DType : uint8_t {
  F64,
  F32,
  F16,
  BF16,
  F8_E4M3,
  F8_E5M2,
  I64,
  I32,
  I16,
  I8,
  U64,
  U32,
  U16,
  U8,
  BOOL,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  Q8_1,
  Q2_K,
  Q3_K,
  Q4_K,
  Q5_K,
  Q6_K,
  Q8_K,
  IQ2_XXS,
  IQ2_XS,
  IQ2_S,
  IQ3_XXS,
  IQ3_S,
  IQ1_S,
  IQ1_M,
  IQ4_NL,
  IQ4_XS,
  TQ1_0,
  TQ2_0,
  MXFP4,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  C64,
  F4,
  F6_E2M3,
  F6_E3M2,
};

// `bytes` hold `block` elements; block is 1 for types that are not quantised.
struct DTypeInfo {
  const char* name;
  int block;
  int bytes;
};
const DTypeInfo& dtype_info(DType dtype);
inline const char* dtype_name(DType dtype) { return dtype_info(dtype).name; }
inline bool is_quantised(DType dtype) { return dtype_info(dtype).block > 1; }

// The product of the sizes; nothing if one is negative or the product of those that are not zero
// exceeds 2^62 (so that rows of an empty tensor can be counted too).
std::optional<int64_t> count_elements(const std::vector<int64_t>& shape);
// Bytes of a dense tensor; nothing if the count overflows in that sense or the last dimension is
// not a multiple of the type's block.
std::optional<int64_t> count_bytes(const std::vector<int64_t>& shape, DType dtype);
// "[2, 3]", for messages.
std::string shape_text(const std::vector<int64_t>& shape);

struct TensorInfo {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;       // row-major: the last dimension is the contiguous one
  const std::byte* data = nullptr;  // inside the mapping; need not be aligned to the element size
  size_t bytes = 0;

  int64_t elements() const;   // the product of the shape
  int64_t row_size() const;   // elements in the last dimension; 1 for a scalar
  int64_t rows() const;       // elements / row_size; 0 for an empty tensor
  int64_t row_bytes() const;  // bytes of one row
};

// A read tensor file. Copies share the mapping; `data` of its tensors stays valid while any copy
// (or any of `mappings`) lives.
struct TensorFile {
  std::string path;                             // for messages
  std::vector<TensorInfo> tensors;              // in the order of the file's header
  std::map<std::string, std::string> metadata;  // safetensors' __metadata__
  std::vector<std::shared_ptr<const MappedFile>> mappings;

  // The tensor of that name, or null.
  const TensorInfo* find(std::string_view name) const;
  // The tensor of that name; Error naming the file otherwise.
  const TensorInfo& get(std::string_view name) const;
  // Adds a tensor; false, and nothing is added, if there is one of that name.
  bool add(TensorInfo tensor);

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  std::unordered_map<std::string, size_t, Hash, std::equal_to<>> index_;
};

}  // namespace heed
