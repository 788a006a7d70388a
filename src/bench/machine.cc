#include "bench/machine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <fmt/chrono.h>
#include <torch/version.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>

#include "bench/timing.h"
#include "model/hub.h"
#include "op/cuda_plugin.h"

namespace heed::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Seconds of the fastest of several calls.
template <typename F>
double fastest(int repeats, const at::Device& device, F&& f) {
  double best = 1e30;
  for (int i = 0; i <= repeats; ++i) {  // the first warms up
    check_interrupted();
    wait_for(device);
    const auto start = Clock::now();
    f();
    wait_for(device);
    if (i > 0) best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

void copy_all(const at::Tensor& from, at::Tensor& to) {
  if (!from.is_cpu()) {
    to.copy_(from);
    return;
  }
  const auto* source = static_cast<const char*>(from.const_data_ptr());
  auto* target = static_cast<char*>(to.mutable_data_ptr());
  at::parallel_for(0, static_cast<int64_t>(from.nbytes()), 1 << 20, [&](int64_t a, int64_t b) {
    std::memcpy(target + a, source + a, static_cast<size_t>(b - a));
  });
}

double matmul_rate(at::ScalarType dtype, const at::Device& device, bool quick) {
  // Products of growing size until one takes long enough; types without hardware stop early.
  const double enough = device.is_cuda() ? 5e-3 : (quick ? 0.02 : 0.1);
  double best = 0;
  for (int64_t n = 256; n <= (device.is_cuda() ? 8192 : 4096); n *= 2) {
    const auto options = at::TensorOptions().dtype(dtype).device(device);
    const at::Tensor a = at::randn({n, n}, options), b = at::randn({n, n}, options);
    const double seconds =
        fastest(quick ? 2 : 5, device, [&] { const at::Tensor c = at::matmul(a, b); });
    best = std::max(best, 2e-12 * static_cast<double>(n * n * n) / seconds);
    if (seconds > enough) break;
  }
  return best;
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(':');
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    if (colon == std::string::npos || begin == std::string::npos) break;
    return line.substr(begin, line.find_last_not_of(" \t") + 1 - begin);
  }
  return "unknown CPU";
}

// The commit that the source folder stands at; "unknown" outside a checkout.
std::string commit() {
  std::string git = home_folder() + "/.git", head, hash;
  if (!std::getline(std::ifstream(git + "/HEAD"), head)) return "unknown";
  if (!head.starts_with("ref: ")) return head.substr(0, 12);
  const std::string ref = head.substr(5);
  if (std::getline(std::ifstream(git + "/" + ref), hash)) return hash.substr(0, 12);
  std::ifstream packed(git + "/packed-refs");
  for (std::string line; std::getline(packed, line);) {
    if (line.ends_with(" " + ref)) return line.substr(0, 12);
  }
  return "unknown";
}

}  // namespace

Machine measure_machine(const at::Device& device, bool quick, Progress& progress) {
  Machine m;
  m.threads = at::get_num_threads();
  m.heed = HEED_VERSION;
  m.commit = commit();
  m.pytorch = TORCH_VERSION;
  m.compiler = fmt::format("{} {}",
#ifdef __clang__
                           "clang",
#else
                           "g++",
#endif
                           __VERSION__);
  m.date = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  if (device.is_cuda()) {
    const auto devices = op::cuda_devices();
    m.multiprocessors = true;
    m.device = devices.empty() ? "CUDA device" : devices[0].name;
    m.cores = devices.empty() ? 0 : devices[0].multiprocessors;
    m.memory_gb = devices.empty() ? 0 : static_cast<double>(devices[0].memory_bytes) * 1e-9;
    const long version = at::detail::getCUDAHooks().versionCUDART();  // 13000 is 13.0
    m.cuda = fmt::format("{}.{}", version / 1000, version % 1000 / 10);
  } else {
    m.device = cpu_name();
    m.cores = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
    m.memory_gb = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) *
                  static_cast<double>(::sysconf(_SC_PAGESIZE)) * 1e-9;
  }
  measure_again(m, device, quick, progress);
  return m;
}

void measure_again(Machine& m, const at::Device& device, bool quick, Progress& progress) {
  const c10::InferenceMode no_gradients;
  const int64_t bytes = int64_t{quick ? 64 : 512} << 20;
  const int repeats = quick ? 4 : 10;
  progress.begin("Measuring the machine", 5);
  at::Tensor from = at::ones({bytes / 4}, at::TensorOptions().dtype(at::kFloat).device(device));
  at::Tensor to = at::zeros_like(from);
  const auto keep = [](double& best, double now) { best = std::max(best, now); };
  const auto gb = static_cast<double>(bytes) * 1e-9;
  keep(m.copy_gbps, 2 * gb / fastest(repeats, device, [&] { copy_all(from, to); }));
  progress.step(1);
  keep(m.read_gbps, gb / fastest(repeats, device, [&] { const at::Tensor s = at::sum(from); }));
  progress.step(2);
  from = to = at::Tensor();
  int64_t done = 2;
  for (const auto& [dtype, name] :
       {std::pair{at::kFloat, "float32"}, {at::kBFloat16, "bfloat16"}, {at::kHalf, "float16"}}) {
    keep(m.matmul_tflops[name], matmul_rate(dtype, device, quick));
    progress.step(++done);
  }
  progress.end();
}

std::string folder_name(const std::string& device) {
  std::string name;
  for (const char c : device) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_';
    if (plain) {
      name += c;
    } else if (!name.empty() && name.back() != '-') {
      name += '-';
    }
  }
  while (name.ends_with('-')) name.pop_back();
  return name;
}

}  // namespace heed::bench
