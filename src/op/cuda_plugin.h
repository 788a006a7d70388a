// `--device cuda`: opens PyTorch's CUDA libraries and Heed's own CUDA plugin when they are asked
// for. The program links neither, so that it starts where cuBLAS, cuDNN and NCCL are not installed.
#pragma once

#include <string>
#include <vector>

#include "kernel/cuda/cuda_plugin_abi.h"

namespace heed::op {

// Makes device "cuda" usable. Call it before anything asks PyTorch for CUDA (manual_seed does), for
// PyTorch remembers the answer. Repeating it costs nothing. Throws Error where there is no NVIDIA
// driver or GPU, where the PyTorch in use has no CUDA libraries or one of them is missing, and
// where the plugin was built for another version of the program.
void open_cuda();

// Whether open_cuda() has succeeded in this process.
bool cuda_is_open();

// Why open_cuda() cannot work on this machine; empty if it should. Loads nothing heavy.
std::string cuda_obstacle();

// The devices as the plugin sees them; empty where the plugin has not been built. After
// open_cuda().
std::vector<heed_cuda_device> cuda_devices();

// The plugin's file, whether it is there or not: bin/heed has lib/libheed_cuda.so, in a build and
// an install tree; HEED_CUDA_PLUGIN names another.
std::string cuda_plugin_path();

}  // namespace heed::op
