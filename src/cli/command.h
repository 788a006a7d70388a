// What every command shares: the common options, their check, and how results are printed.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "io/progress.h"

namespace heed::cli {

// --json, --device, --dtype, --threads, --seed, --out and files to read; a command takes those that
// it has a use for.
struct CommonOptions {
  bool json = false;
  std::string device = "cpu";
  std::string dtype = "float32";
  int threads = 0;  // 0: all cores
  uint64_t seed = 0;
  std::string out;

  void add_json(CLI::App* command);
  void add_threads(CLI::App* command);
  void add_device(CLI::App* command);   // --device, --threads
  void add_compute(CLI::App* command);  // these and --dtype
  void add_seed(CLI::App* command);
  // A file to write; "-" is standard output.
  CLI::Option* add_out(CLI::App* command, const std::string& what);
  // A file, or files, to read; "-" is standard input, and a pipe is read whole. `target` must live
  // as long as these options do.
  CLI::Option* add_input(CLI::App* command, const std::string& name, std::string& target,
                         const std::string& what);
  CLI::Option* add_input(CLI::App* command, const std::string& name,
                         std::vector<std::string>& target, const std::string& what);
  // The positional MODEL.
  CLI::Option* add_model(CLI::App* command, std::string& target);

  // Checks that --out can be written, reads standard input and pipes, applies --threads and --seed,
  // opens the CUDA plugin for --device cuda; call it first in a command's callback.
  void apply();
  // Where tables go: standard output, unless --out takes that.
  std::FILE* table() const;

 private:
  std::vector<std::string*> inputs_;
  std::vector<std::vector<std::string>*> input_lists_;
};

// "-" as the name of standard output.
std::string output_file(const std::string& given);
// Throws UsageError where `folder` is "-": a command that writes several files needs a folder.
void expect_folder(const std::string& folder);

// A progress bar on a terminal's stderr; silent elsewhere.
std::unique_ptr<Progress> make_progress();

}  // namespace heed::cli
