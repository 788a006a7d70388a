// Puts every file NAME_op.cc of this room into PyTorch's dispatcher as torch.ops.heed.*.
#include "op/library.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "heed/op_registry.inc"

TORCH_LIBRARY(heed, library) {
  for (auto register_operators : heed::op::k_op_registry) register_operators(library);
}

namespace heed::op {

void link_library() {}

std::vector<std::string> registered_operators() {
  std::vector<std::string> names;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.starts_with("heed::")) names.push_back(name.name);
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

}  // namespace heed::op
