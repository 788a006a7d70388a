// Files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace heed {

// Writes to a hidden temporary file beside `path`; commit() flushes it to the disk and renames it
// over `path`. Destroyed without commit() (an exception, Ctrl-C), it removes the temporary and an
// earlier file of that name stays as it was. A symbolic link is followed. A pipe, a device and
// /dev/stdout (whatever standard output is) get everything at commit(), from memory: they cannot be
// written out of order. All methods throw Error naming the file on failure.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Appends at the end of what write() has written so far.
  void write(const void* data, size_t bytes);
  // Writes at `offset` from the start; bytes never written read as zero.
  void write_at(uint64_t offset, const void* data, size_t bytes);
  void commit();

  const std::string& path() const { return path_; }

 private:
  [[noreturn]] void fail(const char* what, int error);
  void put(const void* data, size_t bytes);

  std::string path_;       // as the caller named it, for messages
  std::string target_;     // path_ with a symbolic link resolved
  std::string temporary_;  // empty for what is no regular file, and after commit()
  std::string held_;       // for what is no regular file, until commit()
  int fd_ = -1;
};

// The whole of `text` as the file `path`, atomically.
void write_text_atomic(const std::string& path, std::string_view text);

// Error unless a file could be written at `path` now: a command that works for long asks first. No
// file is left behind, and one that exists stays as it is.
void check_writable(const std::string& path);

// Makes the folder `path` and those above it where they are missing. Error if that fails.
void make_folders(const std::string& path);

}  // namespace heed
