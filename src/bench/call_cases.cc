#include "bench/call_cases.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

namespace heed::bench {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using Form = std::function<Tensor(const Tensors&)>;

Tensor heads_first(const Tensor& t) {
  return t.dim() == 4 ? t.detach().transpose(1, 2).contiguous() : t.detach();
}
Tensor tokens_first(const Tensor& t) { return t.dim() == 4 ? t.transpose(1, 2) : t; }

// The gradient of the output: its sum alone would be blind where a loss is.
Tensor incoming(const Tensor& out, bool peer) {
  const Tensor like = peer ? tokens_first(out) : out;
  const Tensor weights = at::arange(like.numel(), like.options()).sin().view(like.sizes());
  return peer ? heads_first(weights) : weights;
}

// A form's gradients of all inputs, or its output; `peer`: of tensors in the peer's layout.
void set_form(Contender& contender, const CallKind& k, const Form& form, bool peer,
              const std::shared_ptr<std::vector<Tensors>>& inputs) {
  if (!k.backward) {
    contender.run = [=](int64_t set) -> Tensors { return {form((*inputs)[set])}; };
    return;
  }
  auto out = std::make_shared<Tensor>(), grad = std::make_shared<Tensor>();
  contender.prepare = [=](int64_t set) {
    const at::AutoGradMode with_gradients(true);
    *out = form((*inputs)[set]);
    *grad = incoming(out->detach(), peer);
  };
  contender.run = [=](int64_t set) -> Tensors {
    return torch::autograd::grad({*out}, (*inputs)[set], {*grad});
  };
}

// The peer on tensors of its own layout, with results in ours.
void set_peer(Contender& contender, const CallKind& k,
              const std::shared_ptr<std::vector<Tensors>>& inputs) {
  contender.name = k.peer;
  contender.version = TORCH_VERSION;
  if (!k.heads_first) return set_form(contender, k, k.peers, false, inputs);
  auto own = std::make_shared<std::vector<Tensors>>();
  for (const Tensors& x : *inputs) {
    own->emplace_back();
    for (const Tensor& t : x) own->back().push_back(heads_first(t).requires_grad_(k.backward));
  }
  set_form(contender, k, k.peers, true, own);
  contender.run = [run = contender.run](int64_t set) {
    Tensors results = run(set);
    for (Tensor& t : results) t = tokens_first(t);
    return results;
  };
}

std::vector<Checked> compare(const CallKind& k, const Tensors& inputs, const Tensors& outputs) {
  const at::AutoGradMode gradients(k.backward);
  Tensors x;
  for (const Tensor& t : inputs) {
    x.push_back((k.heads_first ? heads_first(t) : t.detach()).to(at::kDouble));
    x.back().requires_grad_(k.backward);
  }
  Tensors expected = {k.peers(x)};
  if (k.backward) {
    const Tensor grad = incoming(expected[0].detach(), k.heads_first);
    expected = torch::autograd::grad({expected[0]}, x, {grad});
  }
  std::vector<Checked> checked;
  for (size_t i = 0; i < outputs.size(); ++i) {
    checked.push_back(
        {k.backward ? fmt::format("gradient {}", i) : "out",
         relative_error(outputs[i], k.heads_first ? tokens_first(expected[i]) : expected[i]),
         k.backward ? backward_bound("float32") : forward_bound("float32")});
  }
  return checked;
}

Work call_work(const CallKind& k, const at::Device& device) {
  auto inputs = std::make_shared<std::vector<Tensors>>();
  Work work;
  do {
    Tensors x = k.inputs();
    int64_t bytes = 0;
    for (Tensor& t : x) {
      t = t.to(device).requires_grad_(k.backward);
      bytes += 4 * t.numel();
    }
    work.sets = sets_of(bytes);
    inputs->push_back(std::move(x));
  } while (static_cast<int64_t>(inputs->size()) < work.sets);
  set_form(work.ours, k, k.ours, false, inputs);
  work.peers.emplace_back();
  set_peer(work.peers.back(), k, inputs);
  work.check = [=](int64_t set, const Tensors& outputs) {
    return compare(k, (*inputs)[set], outputs);
  };
  return work;
}

}  // namespace

Case call_case(const CallKind& k) {
  Case c;
  c.op = k.name;
  c.pass = k.backward ? "backward" : "forward";
  c.dtype = "float32";
  for (const auto& [name, size] : k.sizes) c.shape[name] = size;
  c.name = fmt::format("{}/{}/{}/float32/{}", k.engine, k.name, c.pass, shape_name(k.sizes));
  int64_t numbers = 0;
  for (const Tensor& t : k.inputs()) numbers += t.numel();
  c.bytes = 4 * ((k.backward ? 2 : 1) * numbers + k.out);
  c.flops = (k.backward ? 3 : 1) * k.flops;
  c.make = [k](const at::Device& device) { return call_work(k, device); };
  return c;
}

}  // namespace heed::bench
