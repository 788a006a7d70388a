// A peer that is a program of its own: started once, then asked line by line.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "io/json.h"

namespace heed::bench {

class PeerProcess {
 public:
  // Throws Error if it cannot be started.
  explicit PeerProcess(const std::vector<std::string>& command);
  ~PeerProcess();  // ends it
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  void send(const Json& question);  // as one line
  // The next line; looks at Ctrl-C while waiting. Error where the program has ended or says
  // something that is not JSON.
  Json receive();

 private:
  std::string name_;
  pid_t pid_ = -1;
  int to_ = -1, from_ = -1;
  std::string read_;  // behind the last line
};

}  // namespace heed::bench
