#include "cli/streams.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <thread>
#include <utility>
#include <vector>

#include "io/describe.h"
#include "io/error.h"
#include "io/machine_memory.h"
#include "io/progress.h"

namespace heed::cli {
namespace {

struct Copy {
  std::string path, name;
};
std::vector<Copy>& copies() {
  static std::vector<Copy> all;
  return all;
}

std::atomic<bool> g_reader_gone{false};

// A descriptor that is closed, and the name for messages.
struct Source {
  int fd = -1;
  std::string name;
  ~Source() {
    if (fd > STDERR_FILENO) ::close(fd);
  }
  [[noreturn]] void fail(const char* what) const {
    throw Error("{}: {}: {}", printable(name), what, describe_errno(errno));
  }
};

// The number of bytes read into `buffer`, 0 at the end. Waits in a way that Ctrl-C ends.
size_t read_some(const Source& source, std::vector<char>& buffer) {
  for (;;) {
    check_interrupted();
    struct pollfd one {
      source.fd, POLLIN, 0
    };
    if (::poll(&one, 1, -1) < 0) {
      if (errno == EINTR) continue;
      source.fail("cannot be read");
    }
    const ssize_t count = ::read(source.fd, buffer.data(), buffer.size());
    if (count >= 0) return static_cast<size_t>(count);
    if (errno != EINTR && errno != EAGAIN) source.fail("cannot be read");
  }
}

// Everything that `source` gives, as a file without a name on any disk. It is a regular file to all
// readers: they map it, and open it as often as they like.
std::string copy_of(const Source& source) {
  const int memory = ::memfd_create("heed-input", MFD_CLOEXEC);
  if (memory < 0) source.fail("no memory to copy it into");
  const int64_t most = machine_memory() / 2;
  std::vector<char> buffer(size_t{1} << 16);
  int64_t total = 0;
  while (const size_t count = read_some(source, buffer)) {
    total += static_cast<int64_t>(count);
    if (total > most) {
      ::close(memory);
      throw Error(
          "{}: gives more than {} bytes, half of this machine's memory; name a file instead",
          printable(source.name), most);
    }
    for (size_t done = 0; done < count;) {
      const ssize_t written = ::write(memory, buffer.data() + done, count - done);
      if (written < 0 && errno != EINTR) {
        ::close(memory);
        source.fail("cannot be copied into memory");
      }
      if (written > 0) done += static_cast<size_t>(written);
    }
  }
  // By process id: programs that this one starts can open it too.
  return fmt::format("/proc/{}/fd/{}", ::getpid(), memory);
}

bool is_standard_input(const std::string& path) {
  return path == "-" || path == "/dev/stdin" || path == "/dev/fd/0" || path == "/proc/self/fd/0";
}

}  // namespace

std::string as_file(const std::string& given) {
  const bool standard = is_standard_input(given);
  struct stat status {};
  if ((standard ? ::fstat(STDIN_FILENO, &status) : ::stat(given.c_str(), &status)) != 0) {
    if (standard) throw Error("standard input is closed; name a file instead");
    return given;  // who opens it says what is wrong
  }
  if (!standard && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) return given;
  const std::string name = standard ? "standard input" : given;
  if (S_ISDIR(status.st_mode)) throw Error("standard input is a folder; name a file instead");
  for (const Copy& copy : copies()) {
    if (copy.name == name) throw UsageError("{} can be read only once", printable(name));
  }
  Source source{standard ? STDIN_FILENO : ::open(given.c_str(), O_RDONLY | O_CLOEXEC), name};
  if (source.fd < 0) source.fail("cannot be opened");
  if ((S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode)) && !::isatty(source.fd) &&
      status.st_rdev != [] {
        struct stat null {};
        return ::stat("/dev/null", &null) == 0 ? null.st_rdev : dev_t{};
      }()) {
    throw Error("{}: is a device; name a file or a pipe", printable(name));
  }
  copies().push_back({copy_of(source), name});
  return copies().back().path;
}

std::string as_given(std::string text) {
  for (const Copy& copy : copies()) {
    for (size_t at = 0; (at = text.find(copy.path, at)) != std::string::npos;) {
      text.replace(at, copy.path.size(), copy.name);
      at += copy.name.size();
    }
  }
  return text;
}

void print_now(std::string_view text) {
  errno = 0;
  const bool whole = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (!whole || std::fflush(stdout) != 0) {
    const int error = errno;
    throw Error("the output cannot be written{}{}", error != 0 ? ": " : "",
                error != 0 ? describe_errno(error) : "; is the disk full?");
  }
}

void stop_without_reader() {
  struct stat status {};
  if (::fstat(STDOUT_FILENO, &status) != 0) return;
  if (!S_ISFIFO(status.st_mode) && !S_ISSOCK(status.st_mode)) return;
  std::thread([] {
    struct pollfd one {
      STDOUT_FILENO, 0, 0
    };  // told of POLLERR and POLLHUP alone
    while (::poll(&one, 1, -1) < 0 && errno == EINTR) {
    }
    if ((one.revents & (POLLERR | POLLHUP)) == 0) return;
    g_reader_gone = true;
    g_interrupted = true;
  }).detach();
}

bool reader_gone() { return g_reader_gone; }

}  // namespace heed::cli
