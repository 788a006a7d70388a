// Safetensors files: eight bytes of header length (little-endian), a JSON header
// {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": {...}}, then the
// tensors' bytes without gaps (https://github.com/huggingface/safetensors, README "Format").
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/atomic_file.h"
#include "io/tensor_file.h"

namespace heed {

// A header may be at most this long, as in the reference implementation.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// Reads one file. Everything is checked before anything is used: header length, JSON, keys that
// stand twice, types, shapes against byte counts, and that the tensors cover the rest of the file
// exactly once. Error naming file and tensor otherwise. Memory beyond the mapping is bounded by a
// small multiple of the header.
TensorFile open_safetensors(const std::string& path);

// The same from memory; `bytes` must outlive the result. `name` stands for the file in messages.
TensorFile parse_safetensors(std::span<const std::byte> bytes, const std::string& name);

// Reads a model folder: model.safetensors, or the shards that model.safetensors.index.json names.
// `path` of the result is the folder. Tensors of a shard that the index does not name are left out.
TensorFile open_safetensors_folder(const std::string& folder);

// Name, type and shape of a tensor to be written.
struct TensorSpec {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
};

// Writes a file tensor by tensor (or part by part), in any order, atomically: nothing appears
// under `path` before finish(). The header keeps the order of `tensors`; bytes are laid out by
// falling element size, so that with the header padded to eight bytes every tensor is aligned.
class SafetensorsWriter {
 public:
  // Error for a name that stands twice, a type or shape that the format does not have, or a file
  // that cannot be written.
  SafetensorsWriter(std::string path, std::vector<TensorSpec> tensors,
                    const std::map<std::string, std::string>& metadata = {});

  // Appends bytes to the tensor `name`.
  void write(std::string_view name, const void* data, size_t bytes);
  // Error unless every tensor has been written whole.
  void finish();

 private:
  struct Slot {
    uint64_t begin = 0;
    uint64_t bytes = 0;
    uint64_t written = 0;
  };
  std::vector<TensorSpec> tensors_;
  std::vector<Slot> slots_;  // like tensors_
  std::unordered_map<std::string_view, size_t> index_;
  AtomicFile file_;
};

// Writes tensors that lie in memory as one file.
void write_safetensors(const std::string& path, const std::vector<TensorInfo>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace heed
