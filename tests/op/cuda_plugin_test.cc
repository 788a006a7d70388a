// Without a GPU, or with a PyTorch that lacks its CUDA libraries, --device cuda is a clear error.
#include "op/cuda_plugin.h"

#include <gtest/gtest.h>

#include "io/error.h"

namespace heed::op {
namespace {

TEST(CudaPlugin, SaysWhatIsMissing) {
  const std::string obstacle = cuda_obstacle();
  if (obstacle.empty()) {
    // A GPU is there: opening works, or names the library that is missing.
    try {
      open_cuda();
      EXPECT_TRUE(cuda_is_open());
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("cannot be loaded"), std::string::npos) << e.what();
    }
    return;
  }
  EXPECT_FALSE(cuda_is_open());
  try {
    open_cuda();
    FAIL() << "opened, though " << obstacle;
  } catch (const Error& e) {
    EXPECT_EQ(e.what(), obstacle);
    EXPECT_NE(obstacle.find("--device cpu"), std::string::npos) << "says what to do instead";
  }
  EXPECT_FALSE(cuda_is_open());
  EXPECT_TRUE(cuda_devices().empty());
}

}  // namespace
}  // namespace heed::op
