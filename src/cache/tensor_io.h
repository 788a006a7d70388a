// Safetensors files as tensors of PyTorch.
#pragma once

#include "cache/state.h"

namespace heed {

// Every tensor of the file as a copy in memory. Throws Error naming the file for one that is
// broken, and for a type that PyTorch's CPU tensors do not have.
NamedTensors read_tensors(const std::string& path);

// Writes CPU tensors, whole or not at all.
void write_tensors(const std::string& path, const NamedTensors& tensors);

}  // namespace heed
