// Benchmarks of the engine `ewscan`: the selective scan beside a loop over tokens whose every step
// is vectorised over channels and states, the running softmax average beside the same.
#include <ATen/ATen.h>

#include "bench/call_cases.h"
#include "op/ewscan.h"

namespace heed::bench {
namespace {

using at::Tensor;

CallKind selective(int64_t tokens, int64_t channels, int64_t states) {
  CallKind k;
  k.engine = "ewscan";
  k.name = "selective";
  k.peer = "pytorch-loop";
  k.sizes = {{"T", tokens}, {"C", channels}, {"K", states}};
  k.flops = 9 * tokens * channels * states;
  k.out = tokens * channels;
  k.inputs = [=] {
    return std::vector<Tensor>{at::randn({1, tokens, channels}),
                               at::rand({1, tokens, channels}).mul(0.1),
                               at::arange(1, states + 1, at::kFloat).neg().repeat({channels, 1}),
                               at::randn({1, tokens, 1, states}),
                               at::randn({1, tokens, 1, states}),
                               at::randn({channels}),
                               at::randn({1, tokens, channels})};
  };
  const auto tensors = [](const std::vector<Tensor>& x) {
    return op::SelectiveTensors{x[0], x[1], x[2], x[3], x[4], x[5], x[6]};
  };
  k.ours = [=](const auto& x) { return op::selective_scan(tensors(x)).out; };
  k.peers = [=](const auto& x) { return op::selective_scan_naive(tensors(x)).out; };
  return k;
}

CallKind running_softmax(int64_t tokens, int64_t heads, int64_t width) {
  CallKind k;
  k.engine = "ewscan";
  k.name = "lse";
  k.peer = "pytorch-loop";
  k.sizes = {{"T", tokens}, {"H", heads}, {"V", width}};
  k.flops = 3 * tokens * heads * width;
  k.out = tokens * heads * width;
  k.inputs = [=] {
    return std::vector<Tensor>{at::randn({1, tokens, heads}).mul(3),
                               at::randn({1, tokens, heads, width})};
  };
  k.ours = [](const auto& x) { return op::lse_scan({x[0], x[1]}).out; };
  k.peers = [](const auto& x) { return op::lse_scan_naive({x[0], x[1]}).out; };
  return k;
}

}  // namespace

std::vector<Case> ewscan_cases(bool quick) {
  const int64_t tokens = quick ? 256 : 4096, channels = quick ? 128 : 1024;
  std::vector<Case> cases;
  for (const bool backward : {false, true}) {
    // The loop's graph keeps the states of all tokens.
    const int64_t t = backward ? std::min<int64_t>(tokens, 512) : tokens;
    for (CallKind k : {selective(t, channels, 16), running_softmax(t, 16, 64)}) {
      k.backward = backward;
      cases.push_back(call_case(k));
    }
  }
  return cases;
}

}  // namespace heed::bench
