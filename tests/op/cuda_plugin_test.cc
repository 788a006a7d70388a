// Without a GPU, or with a PyTorch that lacks its CUDA libraries, --device cuda is a clear error;
// with both it works. What this machine has is found out here in ways of the test's own.
#include "op/cuda_plugin.h"

#include <ATen/Context.h>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "io/error.h"

namespace heed::op {
namespace cuda_plugin_test {

namespace fs = std::filesystem;

// PyTorch's folder of libraries, by the address of one of its functions.
fs::path torch_folder() {
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&at::globalContext), &info);
  return fs::path(info.dli_fname).parent_path();
}

// Whether a library can be loaded with all that it needs; in a process of its own, so that nothing
// of it stays in this one.
bool loads(const fs::path& library) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr ? 0 : 1);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::string message_of_opening() {
  try {
    open_cuda();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(CudaPlugin, OpensOrSaysWhatIsMissing) {
  EXPECT_FALSE(cuda_is_open());
  EXPECT_TRUE(cuda_devices().empty());
  const fs::path cuda = torch_folder() / "libtorch_cuda.so";
  const bool device = fs::exists("/dev/nvidiactl") || fs::exists("/dev/dxg");
  const std::string obstacle = cuda_obstacle(), message = message_of_opening();
  if (!fs::exists(cuda)) {
    EXPECT_NE(message.find(torch_folder().string() + " has no CUDA libraries"), std::string::npos)
        << message;
  } else if (!loads("libcuda.so.1") || !device) {
    EXPECT_NE(message.find("NVIDIA driver"), std::string::npos) << message;
  } else if (!loads(cuda)) {
    EXPECT_EQ(obstacle, "");
    EXPECT_NE(message.find("cannot be loaded"), std::string::npos) << message;
  } else {
    EXPECT_EQ(message, "");
    EXPECT_EQ(obstacle, "");
    EXPECT_TRUE(cuda_is_open());
    EXPECT_TRUE(at::globalContext().hasCUDA());
    return;
  }
  EXPECT_FALSE(cuda_is_open());
  EXPECT_TRUE(cuda_devices().empty());
  EXPECT_NE(message.find("--device cpu"), std::string::npos) << "says what to do instead";
  if (!obstacle.empty()) {
    EXPECT_EQ(message, obstacle);
  }
}

}  // namespace cuda_plugin_test
}  // namespace heed::op
