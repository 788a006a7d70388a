// Runs the built program as a user would, and a folder for what it writes.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>

#include "temp_folder.h"

namespace heed::test {

struct Result {
  int code;          // -1: it did not end by itself
  std::string text;  // what it printed, as far as that was asked for
};

// `heed ARGUMENTS`; `streams` says what is read of its output, `before` comes first in the shell.
inline Result run_heed(const std::string& arguments, const std::string& streams = "2>&1",
                       const std::string& before = "") {
  const std::string command =
      before + std::string(HEED_BINARY_DIR) + "/bin/heed " + arguments + " " + streams;
  FILE* pipe = ::popen(command.c_str(), "r");
  std::string text;
  char buffer[4096];
  while (const size_t n = std::fread(buffer, 1, sizeof(buffer), pipe)) text.append(buffer, n);
  const int status = ::pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text};
}

// One line that says `text`.
inline void expect_refused(const Result& r, int code, const std::string& text) {
  EXPECT_EQ(r.code, code) << r.text;
  EXPECT_NE(r.text.find(text), std::string::npos) << r.text;
  EXPECT_TRUE(r.text.starts_with("heed: ")) << r.text;
  EXPECT_EQ(std::count(r.text.begin(), r.text.end(), '\n'), 1) << r.text;
}

// A test with a folder of its own, which goes away.
class CliTest : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return temp_ / name; }

  TempFolder temp_;
  const std::filesystem::path folder_ = temp_.path();
};

}  // namespace heed::test
