// On a machine with a GPU: PyTorch computes on it, and the plugin describes it.
#include <gtest/gtest.h>

#include "io/error.h"
#include "op/cuda_plugin.h"

namespace heed::op {
namespace cuda_plugin_gpu_test {

class CudaPlugin : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) GTEST_SKIP() << obstacle;
    open_cuda();
  }
};

TEST_F(CudaPlugin, PyTorchComputesOnTheDevice) {
  const at::Tensor a = at::arange(6, at::TensorOptions().device(at::kCUDA).dtype(at::kFloat));
  const at::Tensor b = at::matmul(a.view({2, 3}), a.view({3, 2})).cpu();
  EXPECT_TRUE(at::equal(b, at::tensor({10.f, 13.f, 28.f, 40.f}).view({2, 2}))) << b;
}

TEST_F(CudaPlugin, DescribesTheDevices) {
  const auto devices = cuda_devices();
  for (const heed_cuda_device& device : devices) {
    EXPECT_GE(device.major, 5);
    EXPECT_GT(device.memory_bytes, int64_t{1} << 28);
    EXPECT_GT(device.multiprocessors, 0);
    // The default architectures are sm_90a and sm_80.
    EXPECT_TRUE(device.kernels == 1 || device.major != 9) << device.name;
  }
}

}  // namespace cuda_plugin_gpu_test
}  // namespace heed::op
