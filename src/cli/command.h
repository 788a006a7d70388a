// What every command shares: the common options, their check, and how results are printed.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "io/progress.h"

namespace heed::cli {

// --json, --device, --dtype, --threads, --seed, --out; a command takes those that it has a use for.
struct CommonOptions {
  bool json = false;
  std::string device = "cpu";
  std::string dtype = "float32";
  int threads = 0;  // 0: all cores
  uint64_t seed = 0;
  std::string out;

  void add_json(CLI::App* command);
  void add_device(CLI::App* command);   // --device, --threads
  void add_compute(CLI::App* command);  // these and --dtype
  void add_seed(CLI::App* command);
  void add_out(CLI::App* command, const std::string& what);
  // Checks that --out can be written, applies --threads and --seed, opens the CUDA plugin for
  // --device cuda; call it first in a command's callback.
  void apply() const;
};

// A progress bar on a terminal's stderr; silent elsewhere.
std::unique_ptr<Progress> make_progress();

}  // namespace heed::cli
