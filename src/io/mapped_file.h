// A file mapped into memory for reading.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace heed {

// Owns a read-only mapping of a whole regular file; pages are read when they are touched, and
// shared between processes. The file must not be shortened while it is mapped.
class MappedFile {
 public:
  // Error if the file cannot be opened, is not a regular file, or is a pointer of git-lfs in place
  // of one.
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;  // null for an empty file
  size_t size_ = 0;
};

// Takes the whole pages of mapped bytes out of this process's memory: what was read of them and is
// not needed again. They are read anew from the file when they are touched.
void forget_pages(std::span<const std::byte> bytes);

}  // namespace heed
