/* What the CUDA plugin, libheed_cuda.so, offers to the program that opens it: plain C, so that the
 * plugin is compiled by nvcc without PyTorch and can be replaced without building the program anew.
 * Pointers, strides and streams are the caller's; no function here throws or allocates for it. */
#ifndef HEED_KERNEL_CUDA_PLUGIN_ABI_H_
#define HEED_KERNEL_CUDA_PLUGIN_ABI_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised with every change of this file; a program refuses a plugin of another number. */
enum { HEED_CUDA_ABI = 1 };

typedef struct heed_cuda_device {
  char name[128];
  int32_t major; /* compute capability */
  int32_t minor;
  int32_t multiprocessors;
  int32_t kernels;      /* 1: this plugin was compiled for this device, 0: it was not */
  int64_t memory_bytes; /* of the whole device */
  int64_t shared_bytes; /* shared memory that one block may opt in to */
  int64_t l2_bytes;
  int64_t bandwidth_bytes_per_s; /* of the memory, by clock and bus width; 0 where not told */
} heed_cuda_device;

int32_t heed_cuda_abi(void);
int32_t heed_cuda_device_count(void);
/* Fills `out` for device `index`; returns NULL, or what went wrong. */
const char* heed_cuda_device_get(int32_t index, heed_cuda_device* out);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* HEED_KERNEL_CUDA_PLUGIN_ABI_H_ */
