// Matrix-state recurrences against their chunked and stepwise forms in PyTorch, with the settings
// of the mechanisms that run on them.
//
// Least operations, a token and head with a state of K x V: writing k^T v and reading q S, 2 K V
// each; a correction reads the state once more (2 K V), a general one writes once more too (2 K V).
// Gradients: twice the forward pass and the states again (2 K V). Bytes: every input read and every
// output written once; a decoding step reads and writes the state.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

#include "bench/cases.h"
#include "op/scan.h"

namespace heed::bench {
namespace {

using at::Tensor;

enum class Decay { kNone, kHead, kToken, kChannel };

struct Setting {
  std::string op;  // the mechanism
  int64_t key_dim, value_dim;
  Decay decay = Decay::kNone;
  bool delta = false, general = false;
  bool read_before = false;  // with a bonus
  bool shared = false;       // one q and k for all heads (Mamba-2's C and B)
};

constexpr int64_t kHeads = 8;

std::vector<Setting> settings() {
  return {{"linear-attention", 64, 64},
          {"retnet", 64, 128, Decay::kHead},
          {"gla", 64, 128, Decay::kChannel},
          {"deltanet", 128, 128, Decay::kNone, true},
          {"gated-deltanet", 128, 128, Decay::kToken, true},
          {"mamba2", 128, 64, Decay::kToken, false, false, false, true},
          {"rwkv6", 64, 64, Decay::kChannel, false, false, true},
          {"dplr", 64, 64, Decay::kChannel, false, true}};
}

// Leaves of one call, in a fixed order; undefined where the setting has none.
struct Leaves {
  Tensor q, k, v, p, r, beta, log_decay, bonus;

  std::vector<Tensor*> all() { return {&q, &k, &v, &p, &r, &beta, &log_decay, &bonus}; }
  std::vector<Tensor> defined() {
    std::vector<Tensor> list;
    for (Tensor* t : all()) {
      if (t->defined()) list.push_back(*t);
    }
    return list;
  }
};

Leaves make_leaves(const Setting& s, int64_t batch, int64_t tokens, const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  const auto unit = [](const Tensor& t) { return t.div(t.norm(2, -1, true)); };
  const int64_t heads = s.shared ? 1 : kHeads;
  const Tensor wide = at::empty({batch, tokens, kHeads, s.key_dim}, options);
  Leaves x;
  x.q = at::randn({batch, tokens, heads, s.key_dim}, options);
  x.k = unit(at::randn_like(x.q));
  x.v = at::randn({batch, tokens, kHeads, s.value_dim}, options);
  if (s.delta) x.beta = at::sigmoid(at::randn({batch, tokens, kHeads}, options));
  if (s.general) {
    x.r = unit(at::randn_like(wide));
    x.p = unit(at::randn_like(wide)).mul(-0.5);
  }
  switch (s.decay) {
    case Decay::kNone:
      break;
    case Decay::kHead:
      x.log_decay = at::log1p(at::exp2(at::arange(kHeads, options).add(5).neg()).neg());
      break;
    case Decay::kToken:
      x.log_decay = at::softplus(at::randn({batch, tokens, kHeads}, options)).mul(-0.1);
      break;
    case Decay::kChannel:
      x.log_decay = at::log_sigmoid(at::randn_like(wide)).div(16);
      break;
  }
  if (s.read_before) x.bonus = at::randn({kHeads, s.key_dim}, options);
  return x;
}

struct Call {
  Tensor q, k, v;
  op::ScanInputs in;
  op::ScanOptions options;
};

Call call_of(const Setting& s, const Leaves& x) {
  Call c;
  const auto spread = [&](const Tensor& t) {
    return s.shared ? t.expand({t.size(0), t.size(1), kHeads, t.size(3)}) : t;
  };
  c.q = spread(x.q);
  c.k = spread(x.k);
  c.v = x.v;
  c.in.p = x.p;
  c.in.r = x.r;
  c.in.beta = x.beta;
  c.in.log_decay = x.log_decay;
  c.in.bonus = x.bonus;
  c.options.scale = 1 / std::sqrt(static_cast<double>(s.key_dim));
  c.options.read_before = s.read_before;
  return c;
}

// Head 0 of sequence 0 in float64.
Leaves first_head(const Leaves& x) {
  const auto cut = [](const Tensor& t, int64_t head_dim) {
    if (!t.defined()) return t;
    Tensor y = t.detach().slice(head_dim, 0, 1);
    if (head_dim > 0) y = y.slice(0, 0, 1);
    return y.to(at::kDouble).contiguous();
  };
  Leaves y;
  y.q = cut(x.q, 2), y.k = cut(x.k, 2), y.v = cut(x.v, 2);
  y.p = cut(x.p, 2), y.r = cut(x.r, 2), y.beta = cut(x.beta, 2);
  y.log_decay = cut(x.log_decay, x.log_decay.defined() && x.log_decay.dim() > 1 ? 2 : 0);
  y.bonus = cut(x.bonus, 0);
  return y;
}

Setting one_head(Setting s) {
  s.shared = false;
  return s;
}

int64_t numel(const Leaves& x) {
  int64_t n = 0;
  for (const Tensor& t : Leaves(x).defined()) n += t.numel();
  return n;
}

Contender pytorch(const char* form) {
  Contender c;
  c.name = form;
  c.version = TORCH_VERSION;
  return c;
}

Json shape_json(const Setting& s, int64_t batch, int64_t tokens) {
  return {{"B", batch},      {"T", tokens},      {"H", kHeads}, {"Hk", s.shared ? 1 : kHeads},
          {"Dk", s.key_dim}, {"Dv", s.value_dim}};
}

int64_t forward_flops(const Setting& s) {  // a token and head
  const int64_t products = 2 + (s.delta ? 1 : 0) + (s.general ? 2 : 0);
  return products * 2 * s.key_dim * s.value_dim;
}

// ---- whole sequences ----------------------------------------------------------------------------

Work forward_work(const Setting& s, int64_t tokens, const at::Device& device) {
  auto inputs = std::make_shared<std::vector<Leaves>>();
  inputs->push_back(make_leaves(s, 1, tokens, device));
  Work work;
  work.sets = sets_of(4 * numel(inputs->front()));
  while (static_cast<int64_t>(inputs->size()) < work.sets) {
    inputs->push_back(make_leaves(s, 1, tokens, device));
  }
  const auto run = [inputs, s](auto form) {
    return [inputs, s, form](int64_t set) -> std::vector<Tensor> {
      const Call c = call_of(s, (*inputs)[set]);
      auto [out, state] = form(c.q, c.k, c.v, c.in, c.options);
      return {out, state};
    };
  };
  work.ours.run = run(op::scan);
  work.peers.push_back(pytorch("pytorch-chunked"));
  work.peers.back().run = run(op::scan_chunked_naive);
  work.check = [inputs, s](int64_t set, const std::vector<Tensor>& outputs) {
    const Leaves x = first_head((*inputs)[set]);
    const Call c = call_of(one_head(s), x);
    const auto [out, state] = op::scan_naive(c.q, c.k, c.v, c.in, c.options);
    return std::vector<Checked>{
        {"out", relative_error(outputs[0].slice(2, 0, 1), out), forward_bound("float32")},
        {"final_state", relative_error(outputs[1].slice(1, 0, 1), state),
         forward_bound("float32")}};
  };
  return work;
}

Work backward_work(const Setting& full, int64_t tokens, const at::Device& device) {
  const Setting s = one_head(full);  // gradients of q and k head by head
  struct Set {
    Leaves x;
    Tensor grad_out;
  };
  auto inputs = std::make_shared<std::vector<Set>>();
  const auto add = [&] {
    Set set{make_leaves(s, 1, tokens, device), {}};
    for (Tensor* t : set.x.all()) {
      if (t->defined()) t->requires_grad_(true);
    }
    set.grad_out = at::randn_like(set.x.v);
    inputs->push_back(std::move(set));
  };
  add();
  Work work;
  work.sets = sets_of(8 * numel(inputs->front().x));
  while (static_cast<int64_t>(inputs->size()) < work.sets) add();
  const auto fill = [inputs, s](Contender& contender, auto form) {
    auto out = std::make_shared<Tensor>();
    contender.prepare = [inputs, s, form, out](int64_t set) {
      const at::AutoGradMode with_gradients(true);
      const Call c = call_of(s, (*inputs)[set].x);
      *out = std::get<0>(form(c.q, c.k, c.v, c.in, c.options));
    };
    contender.run = [inputs, out](int64_t set) -> std::vector<Tensor> {
      Set& x = (*inputs)[set];
      return torch::autograd::grad({*out}, x.x.defined(), {x.grad_out});
    };
  };
  fill(work.ours, op::scan);
  work.peers.push_back(pytorch("pytorch-chunked"));
  fill(work.peers.back(), op::scan_chunked_naive);
  work.check = [inputs, s](int64_t set, const std::vector<Tensor>& outputs) {
    // The chunked form in float64: the token loop would keep a state a token.
    const at::AutoGradMode with_gradients(true);
    Leaves x = first_head((*inputs)[set].x);
    for (Tensor* t : x.all()) {
      if (t->defined()) t->requires_grad_(true);
    }
    const Call c = call_of(s, x);
    const Tensor out = std::get<0>(op::scan_chunked_naive(c.q, c.k, c.v, c.in, c.options));
    const auto grads = torch::autograd::grad(
        {out}, x.defined(), {(*inputs)[set].grad_out.slice(2, 0, 1).to(at::kDouble)});
    static constexpr const char* kNames[] = {"grad_q", "grad_k",    "grad_v",         "grad_p",
                                             "grad_r", "grad_beta", "grad_log_decay", "grad_bonus"};
    std::vector<Checked> checked;
    size_t n = 0;
    const auto leaves = x.all();
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (!leaves[i]->defined()) continue;
      const Tensor& got = outputs[n];
      const Tensor part = got.dim() > 2 ? got.slice(2, 0, 1) : got.slice(0, 0, 1);
      checked.push_back({kNames[i], relative_error(part, grads[n]), backward_bound("float32")});
      ++n;
    }
    return checked;
  };
  return work;
}

Case sequence_case(const Setting& s, int64_t tokens, bool backward) {
  Case c;
  c.op = s.op;
  c.pass = backward ? "backward" : "forward";
  c.dtype = "float32";
  c.shape = shape_json(backward ? one_head(s) : s, 1, tokens);
  c.name =
      fmt::format("scan/{}/{}/float32/{}", s.op, c.pass,
                  shape_name({{"T", tokens}, {"K", s.key_dim}, {"V", s.value_dim}, {"H", kHeads}}));
  const int64_t state = s.key_dim * s.value_dim;
  const Leaves x = make_leaves(backward ? one_head(s) : s, 1, 1, at::kCPU);
  int64_t inputs = 0;  // numbers
  for (const Tensor& t : Leaves(x).defined())
    inputs += t.dim() > 2 ? t.numel() * tokens : t.numel();
  const int64_t out = tokens * kHeads * s.value_dim;
  if (backward) {  // reads the inputs and grad_out, writes a gradient an input
    c.bytes = 4 * (2 * inputs + out);
    c.flops = tokens * kHeads * (2 * forward_flops(s) + 2 * state);
  } else {
    c.bytes = 4 * (inputs + out + kHeads * state);
    c.flops = tokens * kHeads * forward_flops(s);
  }
  c.make = [s, tokens, backward](const at::Device& device) {
    return backward ? backward_work(s, tokens, device) : forward_work(s, tokens, device);
  };
  return c;
}

// ---- one token a sequence -----------------------------------------------------------------------

// The recurrence on a state [B, H, K, V] in place, as one would write it for speed.
Tensor step_in_place(const Call& c, Tensor& state) {
  const auto column = [](const Tensor& t) { return t.squeeze(1).unsqueeze(-1); };  // [B,H,K,1]
  const auto row = [](const Tensor& t) { return t.squeeze(1).unsqueeze(-2); };     // [B,H,1,V]
  Tensor read;
  if (c.in.p.defined()) read = at::matmul(row(c.in.r), state);
  Tensor before;
  if (c.options.read_before) before = at::matmul(row(c.q), state);
  if (c.in.log_decay.defined()) {
    const Tensor decay = at::exp(c.in.log_decay);
    state.mul_(decay.dim() == 1   ? decay.view({1, -1, 1, 1})
               : decay.dim() == 3 ? decay.view({decay.size(0), -1, 1, 1})
                                  : column(decay));
  }
  Tensor value = row(c.v);
  if (c.in.beta.defined()) {
    value = value.sub(at::matmul(row(c.k), state)).mul(row(c.in.beta.unsqueeze(-1)));
  }
  const int64_t n = state.size(0) * state.size(1);
  const auto flat = [n](const Tensor& t) { return t.reshape({n, t.size(2), t.size(3)}); };
  Tensor view = state.view({n, state.size(2), state.size(3)});
  if (read.defined()) view.baddbmm_(flat(column(c.in.p)), flat(read));
  view.baddbmm_(flat(column(c.k)), flat(value));
  if (c.options.read_before) {
    const Tensor own = c.q.mul(c.k).mul(c.in.bonus).sum(-1, true).mul(c.v);
    return before.transpose(1, 2).add(own).mul(c.options.scale);
  }
  return at::matmul(row(c.q), state).transpose(1, 2).mul(c.options.scale);
}

Work step_work(const Setting& s, int64_t batch, const at::Device& device) {
  struct Set {
    Leaves x;
    Tensor first;              // state of sequence and head 0 at the start, float64
    Tensor state, peer_state;  // float32 [B, H, K, V]
    int64_t steps = 0, peer_steps = 0;
  };
  auto sets = std::make_shared<std::vector<Set>>();
  const int64_t state_bytes = 4 * batch * kHeads * s.key_dim * s.value_dim;
  Work work;
  work.sets = sets_of(state_bytes);
  for (int64_t i = 0; i < work.sets; ++i) {
    Set set;
    set.x = make_leaves(s, batch, 1, device);
    set.state = at::randn({batch, kHeads, s.key_dim, s.value_dim}, set.x.q.options());
    set.peer_state = set.state.clone();
    set.first = set.state.slice(0, 0, 1).slice(1, 0, 1).to(at::kDouble);
    sets->push_back(std::move(set));
  }
  work.ours.run = [sets, s](int64_t i) -> std::vector<Tensor> {
    Set& set = (*sets)[i];
    const Call c = call_of(s, set.x);
    ++set.steps;
    return {op::scan_step(c.q, c.k, c.v, c.in, c.options, set.state)};
  };
  work.peers.push_back(pytorch("pytorch-step"));
  work.peers.back().run = [sets, s](int64_t i) -> std::vector<Tensor> {
    Set& set = (*sets)[i];
    ++set.peer_steps;
    return {step_in_place(call_of(s, set.x), set.peer_state), at::Tensor()};
  };
  work.check = [sets, s](int64_t i, const std::vector<Tensor>& outputs) {
    // Every call stepped with the same token: the reference takes as many steps from the start.
    const Set& set = (*sets)[i];
    const bool peer = outputs.size() > 1;
    const int64_t steps = peer ? set.peer_steps : set.steps;
    Leaves x = first_head(set.x);
    for (Tensor* t : x.all()) {
      if (t->defined() && t->dim() > 2) {
        auto sizes = t->sizes().vec();
        sizes[1] = steps;
        *t = t->expand(sizes);
      }
    }
    Call c = call_of(one_head(s), x);
    c.in.initial_state = set.first;
    const auto [out, state] = op::scan_naive(c.q, c.k, c.v, c.in, c.options);
    const auto first = [](const Tensor& t) { return t.slice(0, 0, 1).slice(1, 0, 1); };
    // The bound is one call's; every step rounds the state, and n roundings add up like sqrt(n).
    // The naive form, which other devices run, also rounds the decay, alike in every step here:
    // that adds up over all that the state remembers.
    const double naive = !set.state.is_cpu() ? 10 : 1;
    const double bound =
        naive * forward_bound("float32") * std::max(1.0, std::sqrt(static_cast<double>(steps)) / 4);
    return std::vector<Checked>{
        {"out", relative_error(outputs[0].slice(0, 0, 1).slice(2, 0, 1), out.slice(1, steps - 1)),
         bound},
        {"state", relative_error(first(peer ? set.peer_state : set.state), state), bound}};
  };
  return work;
}

Case step_case(const Setting& s, int64_t batch) {
  Case c;
  c.op = s.op;
  c.pass = "decode";
  c.dtype = "float32";
  c.shape = shape_json(s, batch, 1);
  c.name =
      fmt::format("scan/{}/decode/float32/{}", s.op,
                  shape_name({{"B", batch}, {"K", s.key_dim}, {"V", s.value_dim}, {"H", kHeads}}));
  const int64_t state = batch * kHeads * s.key_dim * s.value_dim;
  c.bytes = 4 * (2 * state + numel(make_leaves(s, 1, 1, at::kCPU)) * batch +
                 batch * kHeads * s.value_dim);
  c.flops = batch * kHeads * forward_flops(s);
  c.make = [s, batch](const at::Device& device) { return step_work(s, batch, device); };
  return c;
}

}  // namespace

std::vector<Case> scan_cases(bool quick) {
  std::vector<Case> cases;
  const int64_t tokens = quick ? 512 : 4096, batch = quick ? 8 : 32;
  for (const Setting& s : settings()) cases.push_back(sequence_case(s, tokens, false));
  for (const Setting& s : settings()) cases.push_back(sequence_case(s, tokens, true));
  for (const Setting& s : settings()) cases.push_back(step_case(s, batch));
  return cases;
}

}  // namespace heed::bench
