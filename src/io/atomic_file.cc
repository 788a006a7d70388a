#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "io/describe.h"
#include "io/error.h"

namespace heed {
namespace {

namespace fs = std::filesystem;

// The permissions that open(2) would give a new file.
mode_t default_mode() {
  const mode_t mask = ::umask(0);
  ::umask(mask);
  return 0666 & ~mask;
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)), target_(path_) {
  std::error_code ignored;
  if (path_ == "/dev/stdout") {
    // By the descriptor and never by name: a file that output was sent to is not replaced (`>>`).
    fd_ = ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (fd_ < 0) fail("cannot be written", errno);
    return;
  }
  if (fs::is_symlink(target_, ignored)) {
    const fs::path resolved = fs::canonical(target_, ignored);
    // A dangling link is replaced by the file.
    if (!resolved.empty()) target_ = resolved.string();
  }
  struct stat status {};
  const bool exists = ::stat(target_.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) {
    throw Error("{}: cannot be written: it is a folder; give the name of a file", printable(path_));
  }
  if (exists && !S_ISREG(status.st_mode)) {
    fd_ = ::open(target_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail("cannot be written", errno);
    return;
  }
  const fs::path parent = fs::path(target_).parent_path();
  const std::string folder = parent.empty() ? "." : parent.string();
  if (!fs::is_directory(folder, ignored)) {
    throw Error("{}: cannot be written: the folder {} does not exist; make it first",
                printable(path_), printable(folder));
  }
  temporary_ = (fs::path(folder) / ("." + fs::path(target_).filename().string() + ".XXXXXX"));
  fd_ = ::mkostemp(temporary_.data(), O_CLOEXEC);
  if (fd_ < 0) {
    temporary_.clear();
    fail("cannot be written", errno);
  }
  ::fchmod(fd_, exists ? status.st_mode & 07777 : default_mode());
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* what, int error) {
  throw Error("{}: {}: {}", printable(path_), what, describe_errno(error));
}

void AtomicFile::write(const void* data, size_t bytes) {
  if (temporary_.empty()) {
    held_.append(static_cast<const char*>(data), bytes);
  } else {
    put(data, bytes);
  }
}

void AtomicFile::put(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(fd_, from, bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail("cannot be written", errno);
    }
    from += written;
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::write_at(uint64_t offset, const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  if (temporary_.empty()) {
    if (held_.size() < offset + bytes) held_.resize(offset + bytes);
    held_.replace(offset, bytes, from, bytes);
    return;
  }
  while (bytes > 0) {
    const ssize_t written = ::pwrite(fd_, from, bytes, static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail("cannot be written", errno);
    }
    from += written;
    offset += static_cast<uint64_t>(written);
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  if (temporary_.empty()) {
    put(held_.data(), held_.size());
    held_.clear();
    const int closed = ::close(std::exchange(fd_, -1));
    if (closed != 0 && errno != EINTR) fail("cannot be written", errno);
    return;
  }
  if (::fsync(fd_) != 0) fail("cannot be flushed to the disk", errno);
  if (::close(std::exchange(fd_, -1)) != 0) fail("cannot be written", errno);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail("cannot be put in place", errno);
  temporary_.clear();
  // Makes the rename itself durable. Not every file system can flush a folder; the file is whole
  // either way.
  const fs::path parent = fs::path(target_).parent_path();
  const int folder = ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_CLOEXEC);
  if (folder >= 0) {
    ::fsync(folder);
    ::close(folder);
  }
}

void write_text_atomic(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

void check_writable(const std::string& path) { AtomicFile unused(path); }

void make_folders(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) {
    throw Error("{}: the folder cannot be made: {}", printable(path),
                describe_errno(error.value()));
  }
  if (!fs::is_directory(path, error)) {
    throw Error("{}: is not a folder; choose another name", printable(path));
  }
}

}  // namespace heed
