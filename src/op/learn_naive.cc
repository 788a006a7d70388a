// The recurrence of kernel/learn/learn.h token by token, with ordinary tensor operations.
#include <ATen/ATen.h>

#include "op/learn.h"

namespace heed::op {
namespace {

using at::Tensor;

// Some sequences of one length: every tensor [b, tokens, ...], states [b, ...].
struct Part {
  LearnTensors x;
  int64_t position = 0;
};

// The memory with its bias, as one matrix whose last row is the bias.
Tensor with_bias(const Tensor& memory, const Tensor& bias, bool has_bias) {
  return has_bias ? at::cat({memory, bias.unsqueeze(-2)}, -2) : memory;
}

Tensor inner_gradient(const LearnTensors& x, const LearnOptions& options, const Tensor& z,
                      const Tensor& target) {
  if (options.norm == 0) return z.sub(target).mul(2);
  const Tensor centred = z.sub(z.mean(-1, true));
  const Tensor deviation = centred.square().mean(-1, true).add(options.eps).sqrt();
  const Tensor n = centred.div(deviation);
  const Tensor error = n.mul(x.norm_weight).add(x.norm_bias).sub(target);
  const Tensor u = error.mul(x.norm_weight);
  return u.sub(u.mean(-1, true)).sub(n.mul(u.mul(n).mean(-1, true))).div(deviation);
}

void run_part(Part& part, const LearnOptions& options, bool open) {
  LearnTensors& x = part.x;
  const bool bias = options.bias != 0;
  const int64_t keys = x.k.size(3);
  Tensor start = with_bias(x.initial_state, x.initial_bias, bias), running = start, now = start;
  if (part.position > 0) running = with_bias(x.initial_running, x.initial_running_bias, bias);
  Tensor momentum = x.initial_momentum;
  int64_t position = part.position;
  const auto token = [](const Tensor& t, int64_t i, bool one) {
    const Tensor row = t.select(1, i);
    return one ? at::cat({row, at::ones_like(row.slice(-1, 0, 1))}, -1) : row;
  };
  const auto gate = [](const Tensor& t, int64_t i) {
    return t.select(1, i).unsqueeze(-1).unsqueeze(-1);
  };
  const auto read = [](const Tensor& q, const Tensor& m) {
    return at::matmul(q.unsqueeze(-2), m).squeeze(-2);
  };
  std::vector<Tensor> outs;
  for (int64_t i = 0; i < x.q.size(1); ++i) {
    if (position == 0) start = running = now;
    const Tensor k = token(x.k, i, bias), q = token(x.q.mul(options.scale), i, bias);
    const Tensor dz = inner_gradient(x, options, read(k, start), token(x.v, i, false));
    Tensor change = k.unsqueeze(-1).mul(dz.unsqueeze(-2)).neg();
    if (x.theta.defined()) change = change.mul(gate(x.theta, i));
    if (x.eta.defined()) change = momentum = momentum.mul(gate(x.eta, i)).add(change);
    if (x.alpha.defined()) running = running.mul(gate(x.alpha, i).neg().add(1));
    running = running.add(change);
    now = x.gain.defined() ? start.add(running.sub(start).mul(gate(x.gain, i))) : running;
    outs.push_back(read(q, now));
    position = (position + 1) % options.chunk;
  }
  x.out = outs.empty() ? x.v : at::stack(outs, 1);
  const bool inside = open && position > 0;
  const Tensor state = inside ? start : now, beside = inside ? running : now;
  x.final_state = state.slice(-2, 0, keys);
  x.final_running = beside.slice(-2, 0, keys);
  x.final_momentum = momentum;
  const Tensor none = at::zeros_like(x.initial_bias);
  x.final_bias = bias ? state.select(-2, keys) : none;
  x.final_running_bias = bias ? beside.select(-2, keys) : none;
  x.final_position = at::full_like(x.initial_position, open ? position : 0);
}

}  // namespace

void learn_recurrence(LearnTensors& in, const LearnOptions& options) {
  const auto compute = in.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  LearnTensors x = in;
  Tensor* const all = reinterpret_cast<Tensor*>(&x);
  constexpr size_t kInputs = offsetof(LearnTensors, out) / sizeof(Tensor);
  constexpr size_t kWeight = offsetof(LearnTensors, norm_weight) / sizeof(Tensor);
  for (size_t i = 0; i < kInputs; ++i) {
    if (all[i].defined()) all[i] = all[i].to(compute);
  }
  const bool open = x.initial_position.defined();
  const int64_t batch = x.q.size(0), heads = x.q.size(2), keys = x.k.size(3), values = x.v.size(3);
  const auto zero = [&](Tensor& t, at::IntArrayRef sizes) {
    if (!t.defined()) t = at::zeros(sizes, x.q.options());
  };
  zero(x.initial_state, {batch, heads, keys, values});
  zero(x.initial_momentum, {batch, heads, keys, values});
  zero(x.initial_bias, {batch, heads, values});
  zero(x.initial_position, {batch});
  // Sequences that may be at different places of their chunks go one by one.
  std::vector<Part> parts;
  for (int64_t n = 0; n < (open ? batch : 1); ++n) {
    Part part{x, open ? x.initial_position[n].item().toLong() : 0};
    Tensor* const t = reinterpret_cast<Tensor*>(&part.x);
    for (size_t i = 0; open && i < kInputs; ++i) {
      const bool shared = i == kWeight || i == kWeight + 1;  // the norm
      if (t[i].defined() && !shared) t[i] = t[i].slice(0, n, n + 1);
    }
    run_part(part, options, open);
    parts.push_back(part);
  }
  if (parts.empty()) parts.push_back({x, 0}), run_part(parts[0], options, false);  // B = 0
  Tensor* const out = reinterpret_cast<Tensor*>(&in);
  for (size_t i = kInputs; i < sizeof(LearnTensors) / sizeof(Tensor); ++i) {
    std::vector<Tensor> pieces;
    for (Part& part : parts) pieces.push_back(reinterpret_cast<Tensor*>(&part.x)[i]);
    out[i] = at::cat(pieces, 0);
  }
  in.out = in.out.to(in.v.scalar_type());
}

}  // namespace heed::op
