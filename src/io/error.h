// How Heed reports what went wrong. Every message says what was wrong, where (file, key, tensor,
// shape), and what to do; the command line prints it as one line and exits with the code below.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace heed {

// Something failed: a broken file, a full disk, a model that cannot be read. Exit code 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  template <typename... Args>
  requires(sizeof...(Args) > 0) explicit Error(fmt::format_string<Args...> format, Args&&... args)
      : std::runtime_error(fmt::format(format, std::forward<Args>(args)...)) {}
  virtual int exit_code() const { return 1; }
};

// The caller asked for something that does not exist or does not fit: an unknown option, a missing
// or misshapen tensor, a plan for another model. Exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 2; }
};

// Ctrl-C. Exit code 130, the shell's convention.
class Interrupted : public Error {
 public:
  Interrupted() : Error("interrupted") {}
  int exit_code() const override { return 130; }
};

}  // namespace heed
