// Benchmarks of the engines `ewscan` and `mix`: the selective scan beside a loop over tokens whose
// every step is vectorised over channels and states, the running softmax average beside the same,
// short convolutions beside PyTorch's grouped ones.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

#include "bench/cases.h"
#include "op/ewscan.h"
#include "op/mix.h"

namespace heed::bench {
namespace {

using at::Tensor;

// What one kind of case does: the inputs of a call, its fast form and its peer's, both of which
// return their first output.
struct Kind {
  std::string name, peer;
  std::vector<std::pair<std::string, int64_t>> sizes;
  int64_t flops = 0;
  bool backward = false;
  std::function<std::vector<Tensor>()> inputs;
  std::function<Tensor(const std::vector<Tensor>&)> ours, peers;
};

Kind selective(int64_t tokens, int64_t channels, int64_t states) {
  Kind k;
  k.name = "selective";
  k.peer = "pytorch-loop";
  k.sizes = {{"T", tokens}, {"C", channels}, {"K", states}};
  k.flops = 9 * tokens * channels * states;
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

Kind running_softmax(int64_t tokens, int64_t heads, int64_t width) {
  Kind k;
  k.name = "lse";
  k.peer = "pytorch-loop";
  k.sizes = {{"T", tokens}, {"H", heads}, {"V", width}};
  k.flops = 3 * tokens * heads * width;
  k.inputs = [=] {
    return std::vector<Tensor>{at::randn({1, tokens, heads}).mul(3),
                               at::randn({1, tokens, heads, width})};
  };
  k.ours = [](const auto& x) { return op::lse_scan({x[0], x[1]}).out; };
  k.peers = [](const auto& x) { return op::lse_scan_naive({x[0], x[1]}).out; };
  return k;
}

Kind convolution(int64_t tokens, int64_t channels, int64_t taps) {
  Kind k;
  k.name = "short-conv";
  k.peer = "pytorch-conv1d";
  k.sizes = {{"T", tokens}, {"C", channels}, {"L", taps}};
  k.flops = 2 * tokens * channels * taps;
  k.inputs = [=] {
    return std::vector<Tensor>{at::randn({1, tokens, channels}), at::randn({channels, taps})};
  };
  k.ours = [](const auto& x) { return op::short_conv({x[0], x[1]}).out; };
  k.peers = [=](const auto& x) {
    const Tensor padded = at::constant_pad_nd(x[0].transpose(1, 2), {taps - 1, 0});
    const std::vector<int64_t> one = {1}, none = {0};  // an IntArrayRef keeps no numbers
    return at::conv1d(padded, x[1].unsqueeze(1), std::optional<Tensor>(), at::IntArrayRef(one),
                      at::IntArrayRef(none), at::IntArrayRef(one), channels)
        .transpose(1, 2);
  };
  return k;
}

// A form's gradients of all inputs, or its output.
void set_form(Contender& contender, const Kind& k,
              const std::function<Tensor(const std::vector<Tensor>&)>& form,
              const std::shared_ptr<std::vector<std::vector<Tensor>>>& inputs) {
  if (!k.backward) {
    contender.run = [=](int64_t set) -> std::vector<Tensor> { return {form((*inputs)[set])}; };
    return;
  }
  auto out = std::make_shared<Tensor>();
  contender.prepare = [=](int64_t set) {
    const at::AutoGradMode with_gradients(true);
    *out = form((*inputs)[set]);
  };
  contender.run = [=](int64_t set) -> std::vector<Tensor> {
    return torch::autograd::grad({*out}, (*inputs)[set], {at::ones_like(*out)});
  };
}

Work make_work(const Kind& k, const at::Device& device) {
  auto inputs = std::make_shared<std::vector<std::vector<Tensor>>>();
  Work work;
  do {
    std::vector<Tensor> x = k.inputs();
    int64_t bytes = 0;
    for (Tensor& t : x) {
      t = t.to(device).requires_grad_(k.backward);
      bytes += 4 * t.numel();
    }
    work.sets = sets_of(bytes);
    inputs->push_back(std::move(x));
  } while (static_cast<int64_t>(inputs->size()) < work.sets);
  set_form(work.ours, k, k.ours, inputs);
  work.peers.emplace_back();
  work.peers.back().name = k.peer;
  work.peers.back().version = TORCH_VERSION;
  set_form(work.peers.back(), k, k.peers, inputs);
  work.check = [=](int64_t set, const std::vector<Tensor>& outputs) {
    const at::AutoGradMode gradients(k.backward);
    std::vector<Tensor> x = (*inputs)[set];
    for (Tensor& t : x) t = t.detach().to(at::kDouble).requires_grad_(k.backward);
    std::vector<Tensor> expected = {k.peers(x)};
    if (k.backward) {
      expected = torch::autograd::grad({expected[0]}, x, {at::ones_like(expected[0])});
    }
    std::vector<Checked> checked;
    for (size_t i = 0; i < outputs.size(); ++i) {
      checked.push_back({k.backward ? fmt::format("gradient {}", i) : "out",
                         relative_error(outputs[i], expected[i]),
                         k.backward ? backward_bound("float32") : forward_bound("float32")});
    }
    return checked;
  };
  return work;
}

Case make_case(const Kind& k) {
  Case c;
  c.op = k.name;
  c.pass = k.backward ? "backward" : "forward";
  c.dtype = "float32";
  for (const auto& [name, size] : k.sizes) c.shape[name] = size;
  c.name = fmt::format("ewscan/{}/{}/float32/{}", k.name, c.pass, shape_name(k.sizes));
  int64_t numbers = 0;
  const std::vector<Tensor> x = k.inputs();
  for (const Tensor& t : x) numbers += t.numel();
  const int64_t out = x.back().dim() == 4 ? x.back().numel() : x[0].numel();
  c.bytes = 4 * ((k.backward ? 2 : 1) * numbers + out);
  c.flops = (k.backward ? 3 : 1) * k.flops;
  c.make = [k](const at::Device& device) { return make_work(k, device); };
  return c;
}

}  // namespace

std::vector<Case> ewscan_cases(bool quick) {
  const int64_t tokens = quick ? 256 : 4096, channels = quick ? 128 : 1024;
  std::vector<Case> cases;
  for (const bool backward : {false, true}) {
    // The loop's graph keeps the states of all tokens.
    const int64_t t = backward ? std::min<int64_t>(tokens, 512) : tokens;
    for (Kind k :
         {selective(t, channels, 16), running_softmax(t, 16, 64), convolution(t, channels, 4)}) {
      k.backward = backward;
      cases.push_back(make_case(k));
    }
  }
  return cases;
}

}  // namespace heed::bench
