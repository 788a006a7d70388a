// Benchmarks of the engine `mix`: short convolutions with a kernel a channel beside PyTorch's
// grouped ones, with a kernel a token beside a product over unfolded tokens.
#include <ATen/ATen.h>

#include "bench/call_cases.h"
#include "op/mix.h"

namespace heed::bench {
namespace {

using at::Tensor;

Tensor padded(const Tensor& x, int64_t taps) {  // [B,T,C] -> [B,C,L-1+T]
  return at::constant_pad_nd(x.transpose(1, 2), {taps - 1, 0});
}

CallKind fixed(int64_t tokens, int64_t channels, int64_t taps) {
  CallKind k;
  k.engine = "mix";
  k.name = "short_conv";
  k.peer = "pytorch-conv1d";
  k.sizes = {{"T", tokens}, {"C", channels}, {"L", taps}};
  k.flops = 2 * tokens * channels * taps;
  k.out = tokens * channels;
  k.inputs = [=] {
    return std::vector<Tensor>{at::randn({1, tokens, channels}), at::randn({channels, taps})};
  };
  k.ours = [](const auto& x) { return op::short_conv({x[0], x[1]}).out; };
  k.peers = [=](const auto& x) {
    const std::vector<int64_t> one = {1}, none = {0};  // an IntArrayRef keeps no numbers
    return at::conv1d(padded(x[0], taps), x[1].unsqueeze(1), std::optional<Tensor>(),
                      at::IntArrayRef(one), at::IntArrayRef(none), at::IntArrayRef(one), channels)
        .transpose(1, 2);
  };
  return k;
}

CallKind generated(int64_t tokens, int64_t channels, int64_t heads, int64_t taps) {
  CallKind k;
  k.engine = "mix";
  k.name = "dynamic_conv";
  k.peer = "pytorch-unfold";
  k.sizes = {{"T", tokens}, {"C", channels}, {"H", heads}, {"L", taps}};
  k.flops = 2 * tokens * channels * taps;
  k.out = tokens * channels;
  k.inputs = [=] {
    return std::vector<Tensor>{at::randn({1, tokens, channels}),
                               at::randn({1, tokens, heads, taps}).softmax(-1)};
  };
  k.ours = [](const auto& x) { return op::short_conv({x[0], x[1]}).out; };
  k.peers = [=](const auto& x) {
    const Tensor windows = padded(x[0], taps).unfold(2, taps, 1).transpose(1, 2);  // [B,T,C,L]
    return at::matmul(windows.unflatten(2, {heads, channels / heads}), x[1].unsqueeze(-1))
        .flatten(2);
  };
  return k;
}

}  // namespace

std::vector<Case> mix_cases(bool quick) {
  const int64_t tokens = quick ? 256 : 4096, channels = quick ? 128 : 1024;
  std::vector<Case> cases;
  for (const bool backward : {false, true}) {
    for (CallKind k : {fixed(tokens, channels, 4), generated(tokens, channels, 16, 7)}) {
      k.backward = backward;
      cases.push_back(call_case(k));
    }
  }
  return cases;
}

}  // namespace heed::bench
