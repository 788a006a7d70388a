// Cases of engines whose call is a function of tensors: float32 inputs in, one output; the fast
// form beside a peer of PyTorch operators, forward and with the gradients of every input.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bench/cases.h"

namespace heed::bench {

struct CallKind {
  std::string engine, name, peer;  // the case is ENGINE/NAME/PASS/float32/SIZES
  std::vector<std::pair<std::string, int64_t>> sizes;
  int64_t flops = 0, out = 0;  // of a forward pass; numbers of the output
  bool backward = false;
  // Whether the peer has its tensors of rank 4, inputs and output, as [B,H,T,D], its own layout:
  // they are copied beforehand, and its results compared through a view.
  bool heads_first = false;
  std::function<std::vector<at::Tensor>()> inputs;
  std::function<at::Tensor(const std::vector<at::Tensor>&)> ours, peers;
};

// The peer is also the reference, in float64.
Case call_case(const CallKind& kind);

}  // namespace heed::bench
