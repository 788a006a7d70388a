// The plugin's account of the devices it finds, and whether its kernels run on them.
#include <cuda_runtime.h>

#include <cstdio>

#include "kernel/cuda/cuda_plugin_abi.h"

namespace {

// The only way to know that this file's machine code suits a device is to ask for a kernel of it.
__global__ void probe_kernel() {}

int64_t attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

}  // namespace

extern "C" {

int32_t heed_cuda_abi(void) { return HEED_CUDA_ABI; }

int32_t heed_cuda_device_count(void) {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char* heed_cuda_device_get(int32_t index, heed_cuda_device* out) {
  cudaDeviceProp properties;
  if (cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    return cudaGetErrorString(error);
  }
  *out = heed_cuda_device{};
  std::snprintf(out->name, sizeof(out->name), "%s", properties.name);
  out->major = properties.major;
  out->minor = properties.minor;
  out->multiprocessors = properties.multiProcessorCount;
  out->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  out->shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  out->l2_bytes = properties.l2CacheSize;
  // Kilohertz and bits; two transfers a clock.
  out->bandwidth_bytes_per_s = 2 * 1000 * attribute(cudaDevAttrMemoryClockRate, index) *
                               attribute(cudaDevAttrGlobalMemoryBusWidth, index) / 8;
  int current = 0;
  cudaGetDevice(&current);
  cudaSetDevice(index);
  cudaFuncAttributes attributes;
  out->kernels = cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
  cudaGetLastError();  // a missing kernel is an answer here, not an error to leave behind
  cudaSetDevice(current);
  return nullptr;
}

}  // extern "C"
