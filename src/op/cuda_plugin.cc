// Opens PyTorch's CUDA libraries and libheed_cuda.so by name at run time; see cuda_plugin.h.
#include "op/cuda_plugin.h"

#include <ATen/Context.h>
#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "io/error.h"

namespace heed::op {
namespace {

namespace fs = std::filesystem;

std::mutex g_mutex;
bool g_open = false;
void* g_plugin = nullptr;

// The folder of the libtorch_cpu.so that this process runs with.
fs::path torch_library_folder() {
  fs::path found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const fs::path path = info->dlpi_name;
        if (path.filename() != "libtorch_cpu.so") return 0;
        *static_cast<fs::path*>(out) = path.parent_path();
        return 1;
      },
      &found);
  return found;
}

// dlerror() where the loader said something.
std::string loader_message() {
  const char* message = dlerror();
  return message ? message : "unknown error of the loader";
}

void open_plugin() {
  const fs::path path = cuda_plugin_path();
  if (!fs::exists(path)) return;
  void* plugin = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!plugin) {
    throw Error("{} cannot be loaded: {}; build it anew with ./heed build", path.string(),
                loader_message());
  }
  auto abi = reinterpret_cast<decltype(&heed_cuda_abi)>(dlsym(plugin, "heed_cuda_abi"));
  if (!abi || abi() != HEED_CUDA_ABI) {
    const int have = abi ? abi() : 0;
    dlclose(plugin);
    throw Error("{} has interface {}, this program needs {}; build it anew with ./heed build",
                path.string(), have, static_cast<int>(HEED_CUDA_ABI));
  }
  g_plugin = plugin;
}

}  // namespace

std::string cuda_obstacle() {
  const fs::path folder = torch_library_folder();
  if (!fs::exists(folder / "libtorch_cuda.so")) {
    return fmt::format(
        "--device cuda: the PyTorch in {} has no CUDA libraries; set HEED_TORCH_DIR to one that "
        "has, or use --device cpu",
        folder.string());
  }
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!driver) {
    return "--device cuda: no NVIDIA driver on this machine (libcuda.so.1 is missing); install "
           "one, "
           "or use --device cpu";
  }
  auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  int devices = 0;
  if (!init || !count || init(0) != 0 || count(&devices) != 0 || devices == 0) {
    return "--device cuda: the NVIDIA driver finds no GPU (nvidia-smi may say why); use --device "
           "cpu";
  }
  return {};
}

void open_cuda() {
  const std::lock_guard lock(g_mutex);
  if (g_open) return;
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) throw Error(obstacle);
  const fs::path folder = torch_library_folder();
  // Global, because the libraries that PyTorch loads later (linear algebra, say) look symbols up
  // here.
  if (!dlopen((folder / "libtorch_cuda.so").c_str(), RTLD_NOW | RTLD_GLOBAL)) {
    throw Error(
        "--device cuda: PyTorch's CUDA part in {} cannot be loaded: {}; install the CUDA packages "
        "that this release of PyTorch names (pip install torch==2.11.0 brings them), or use "
        "--device cpu",
        folder.string(), loader_message());
  }
  if (!at::globalContext().hasCUDA()) {
    throw Error(
        "--device cuda: PyTorch was asked for CUDA before its CUDA part was opened; open_cuda() "
        "must come first");
  }
  at::globalContext().lazyInitDevice(at::kCUDA);
  open_plugin();
  g_open = true;
}

bool cuda_is_open() {
  const std::lock_guard lock(g_mutex);
  return g_open;
}

std::string cuda_plugin_path() {
  if (const char* path = std::getenv("HEED_CUDA_PLUGIN")) return path;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  return (program.parent_path().parent_path() / "lib" / "libheed_cuda.so").string();
}

std::vector<heed_cuda_device> cuda_devices() {
  const std::lock_guard lock(g_mutex);
  std::vector<heed_cuda_device> devices;
  if (!g_plugin) return devices;
  auto count = reinterpret_cast<decltype(&heed_cuda_device_count)>(
      dlsym(g_plugin, "heed_cuda_device_count"));
  auto get =
      reinterpret_cast<decltype(&heed_cuda_device_get)>(dlsym(g_plugin, "heed_cuda_device_get"));
  for (int32_t i = 0; i < count(); ++i) {
    heed_cuda_device device;
    if (const char* problem = get(i, &device)) throw Error("CUDA device {}: {}", i, problem);
    devices.push_back(device);
  }
  return devices;
}

}  // namespace heed::op
