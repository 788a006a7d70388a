#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "io/describe.h"
#include "io/error.h"
#include "io/file_kind.h"

namespace heed {

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK keeps open() from waiting for a writer when the path is a named pipe.
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw Error("{}: cannot be opened: {}", printable(path_), describe_errno(errno));
  struct stat status {};
  if (::fstat(fd, &status) != 0) {
    const int error = errno;
    ::close(fd);
    throw Error("{}: cannot be read: {}", printable(path_), describe_errno(error));
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(fd);
    throw Error("{}: is {}; a regular file is needed here", printable(path_),
                S_ISDIR(status.st_mode) ? "a folder" : "not a regular file");
  }
  size_ = static_cast<size_t>(status.st_size);
  if (size_ > 0) {
    void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
      const int error = errno;
      ::close(fd);
      throw Error("{}: cannot be mapped into memory: {}", printable(path_), describe_errno(error));
    }
    data_ = static_cast<const std::byte*>(mapped);
  }
  ::close(fd);
  // Nothing that Heed reads is such a pointer, whatever was to be read.
  constexpr size_t kLongestPointer = 1024;  // bytes, by the specification of git-lfs
  if (size_ > 0 && size_ < kLongestPointer) {
    if (const FileFacts facts = file_facts(bytes()); facts.kind == FileKind::kPointer) {
      ::munmap(const_cast<std::byte*>(data_), size_);
      throw Error("{}: {}", printable(path_), facts.text);
    }
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void forget_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t begin = (first + page - 1) / page * page,
                  end = (first + bytes.size()) / page * page;
  // Advice: where it is not taken, the pages stay.
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace heed
