// The options that commands share, and the progress bar.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/streams.h"
#include "io/atomic_file.h"
#include "io/error.h"
#include "op/cuda_plugin.h"
#include "op/parallel.h"

namespace heed::cli {

void CommonOptions::add_json(CLI::App* command) { command->add_flag("--json", json, "Print JSON"); }

void CommonOptions::add_compute(CLI::App* command) {
  add_device(command);
  command->add_option("--dtype", dtype, "float32, bfloat16 or float16")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
}

void CommonOptions::add_threads(CLI::App* command) {
  command->add_option("--threads", threads, "CPU threads; 0: all cores")->check(thread_count());
}

void CommonOptions::add_device(CLI::App* command) {
  command->add_option("--device", device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
  add_threads(command);
}

void CommonOptions::add_seed(CLI::App* command) {
  command->add_option("--seed", seed, "Seed of everything random")->check(seeds());
}

CLI::Option* CommonOptions::add_out(CLI::App* command, const std::string& what) {
  return command->add_option("--out", out, what + "; -: standard output");
}

CLI::Option* CommonOptions::add_input(CLI::App* command, const std::string& name,
                                      std::string& target, const std::string& what) {
  inputs_.push_back(&target);
  return command->add_option(name, target, what + "; -: standard input");
}

CLI::Option* CommonOptions::add_input(CLI::App* command, const std::string& name,
                                      std::vector<std::string>& target, const std::string& what) {
  input_lists_.push_back(&target);
  return command->add_option(name, target, what + "; -: standard input");
}

CLI::Option* CommonOptions::add_model(CLI::App* command, std::string& target) {
  inputs_.push_back(&target);
  return command
      ->add_option("MODEL", target,
                   "Folder, .gguf file, llama2.c .bin file or name (`heed models`)")
      ->required();
}

void CommonOptions::apply() {
  out = output_file(out);
  if (json && out == kStandardOutput) {
    throw UsageError("--json and --out - both write JSON to standard output; give one of them");
  }
  if (!out.empty()) check_writable(out);
  for (std::string* input : inputs_) {
    if (!input->empty()) *input = as_file(*input);
  }
  for (std::vector<std::string>* list : input_lists_) {
    for (std::string& input : *list) input = as_file(input);
  }
  if (threads > 0) at::set_num_threads(threads);
  op::warm_vector_math();
  if (device == "cuda") op::open_cuda();  // before manual_seed, which asks PyTorch for CUDA
  at::manual_seed(seed);
}

std::FILE* CommonOptions::table() const { return out == kStandardOutput ? stderr : stdout; }

std::string output_file(const std::string& given) {
  return given == "-" || given == "/dev/fd/1" ? kStandardOutput : given;
}

void expect_folder(const std::string& folder) {
  if (folder == "-") {
    throw UsageError(
        "--out -: several files are written, for which standard output has no room; "
        "name a folder");
  }
}

namespace {

using Clock = std::chrono::steady_clock;

std::string duration(double seconds) {
  const int64_t s = std::llround(seconds);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}:{:02} min", s / 60, s % 60);
  return fmt::format("{}:{:02} h", s / 3600, s / 60 % 60);
}

// One line on stderr, drawn over itself at most ten times a second.
class Bar : public Progress {
 public:
  ~Bar() override { end(); }

  void begin(std::string_view stage, int64_t total) override {
    end();
    stage_ = stage;
    total_ = total;
    start_ = Clock::now();
    drawn_ = {};
    open_ = true;
    draw(0, {});
  }

  void update(int64_t done, std::string_view note) override {
    if (!open_) return;
    const bool last = total_ > 0 && done >= total_;
    if (!last && Clock::now() - drawn_ < std::chrono::milliseconds(100)) return;
    draw(done, note);
  }

  void end() override {
    if (!open_) return;
    open_ = false;
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
  }

 private:
  void draw(int64_t done, std::string_view note) {
    drawn_ = Clock::now();
    const double seconds = std::chrono::duration<double>(drawn_ - start_).count();
    std::string line = stage_;
    if (total_ > 0) {
      constexpr int kWidth = 24;
      const double part = std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
      const int full = static_cast<int>(part * kWidth);
      line += fmt::format(" [{}{}] {}/{}", std::string(full, '='), std::string(kWidth - full, ' '),
                          done, total_);
      if (done > 0 && part < 1) line += ", " + duration(seconds / part - seconds) + " left";
    } else {
      line += fmt::format(" {}", duration(seconds));
    }
    if (!note.empty()) line += fmt::format("  {}", note);
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    std::fflush(stderr);
  }

  std::string stage_;
  int64_t total_ = 0;
  bool open_ = false;
  Clock::time_point start_, drawn_;
};

}  // namespace

std::unique_ptr<Progress> make_progress() {
  if (::isatty(STDERR_FILENO)) return std::make_unique<Bar>();
  return std::make_unique<Progress>();
}

}  // namespace heed::cli
