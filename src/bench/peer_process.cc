#include "bench/peer_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "io/error.h"
#include "io/progress.h"

namespace heed::bench {

PeerProcess::PeerProcess(const std::vector<std::string>& command) : name_(command.at(0)) {
  int in[2], out[2];
  if (::pipe2(in, O_CLOEXEC) != 0) throw Error("{}: {}", name_, std::strerror(errno));
  if (::pipe2(out, O_CLOEXEC) != 0) {
    ::close(in[0]), ::close(in[1]);
    throw Error("{}: {}", name_, std::strerror(errno));
  }
  std::vector<char*> words;
  words.reserve(command.size() + 1);
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::dup2(in[0], 0);
    ::dup2(out[1], 1);
    ::execvp(words[0], words.data());
    ::_exit(127);
  }
  ::close(in[0]), ::close(out[1]);
  to_ = in[1], from_ = out[0];
  if (pid_ < 0) {
    ::close(to_), ::close(from_);
    throw Error("{}: {}", name_, std::strerror(errno));
  }
}

PeerProcess::~PeerProcess() {
  ::close(to_);
  ::close(from_);
  ::kill(pid_, SIGTERM);
  ::waitpid(pid_, nullptr, 0);
}

void PeerProcess::send(const Json& question) {
  const std::string line = question.dump() + "\n";
  for (size_t done = 0; done < line.size();) {
    const ssize_t n = ::write(to_, line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("{}: it has ended ({})", name_, std::strerror(errno));
    done += static_cast<size_t>(n);
  }
}

Json PeerProcess::receive() {
  for (;;) {
    const size_t end = read_.find('\n');
    if (end != std::string::npos) {
      const std::string line = read_.substr(0, end);
      read_.erase(0, end + 1);
      return parse_json(line, name_);
    }
    check_interrupted();
    pollfd waiting{from_, POLLIN, 0};
    if (::poll(&waiting, 1, 200) <= 0) continue;
    char buffer[4096];
    const ssize_t n = ::read(from_, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Error("{}: it ended without an answer", name_);
    read_.append(buffer, static_cast<size_t>(n));
  }
}

}  // namespace heed::bench
