// Benchmarks of the engine `learn`: Titans' memory and TTT-linear's beside their closed form in
// batched matrix products, a loop over chunks alone.
//
// Flops a token and head: the gradient's, the read's and the update's products with the memory, 2 K
// V each (momentum: 2 K V more), and those within a chunk of L tokens, L (K + V) on average.
#include <ATen/ATen.h>

#include "bench/call_cases.h"
#include "op/learn.h"

namespace heed::bench {
namespace {

using at::Tensor;

// Ratios x_i / x_j (j <= i) of a running product over the last dimension, zero above the diagonal.
Tensor ratios(const Tensor& logs) {
  const Tensor sums = logs.cumsum(-1);
  return sums.unsqueeze(-1).sub(sums.unsqueeze(-2)).tril().exp().tril();
}

// dz of 1/2 |w . norm(z) + b - v|^2.
Tensor norm_gradient(const Tensor& z, const Tensor& v, const Tensor& w, const Tensor& b) {
  const Tensor centred = z.sub(z.mean(-1, true));
  const Tensor deviation = centred.square().mean(-1, true).add(1e-6).sqrt();
  const Tensor x = centred.div(deviation), u = x.mul(w).add(b).sub(v).mul(w);
  return u.sub(u.mean(-1, true)).sub(x.mul(u.mul(x).mean(-1, true))).div(deviation);
}

Tensor chunks_of(const Tensor& t, int64_t chunk) {  // [B,T,H,..] -> [B,H,N,L,..]
  return t.transpose(1, 2).unflatten(2, {t.size(1) / chunk, chunk});
}
Tensor tokens_of(const std::vector<Tensor>& outs) {  // [B,H,L,V] each -> [B,T,H,V]
  return at::cat(outs, 2).transpose(1, 2);
}

// q, k, v, alpha, eta, theta.
Tensor titans_chunks(const std::vector<Tensor>& x, int64_t chunk) {
  std::vector<Tensor> c;
  for (const Tensor& t : x) c.push_back(chunks_of(t, chunk));
  const Tensor decays = c[3].neg().log1p(), momenta = c[4].log();
  const Tensor kept = decays.cumsum(-1).exp(), carried = momenta.cumsum(-1).exp();
  const Tensor n = ratios(momenta).mul(c[5].unsqueeze(-2));  // n_ij
  const Tensor r = ratios(decays), g = at::matmul(r, n);
  const Tensor f = at::matmul(r, carried.unsqueeze(-1)).squeeze(-1);
  const Tensor reads = at::matmul(c[0], c[1].transpose(-1, -2)).mul(g);
  const auto last = [&](const Tensor& t, int64_t i) { return t.select(2, i).select(2, chunk - 1); };
  Tensor m = at::zeros({x[0].size(0), x[0].size(2), x[0].size(3), x[2].size(3)}, x[0].options());
  Tensor z = m;
  std::vector<Tensor> outs;
  for (int64_t i = 0; i < c[0].size(2); ++i) {
    const auto at_i = [&](const Tensor& t) { return t.select(2, i); };
    const auto column = [&](const Tensor& t) { return at_i(t).unsqueeze(-1); };
    const Tensor k = at_i(c[1]), dz = at::matmul(k, m).sub(at_i(c[2])).mul(2);
    const Tensor q = at_i(c[0]);
    outs.push_back(at::matmul(q.mul(column(kept)), m)
                       .add(at::matmul(q.mul(column(f)), z))
                       .sub(at::matmul(at_i(reads), dz)));
    const auto scalar = [&](const Tensor& t) { return last(t, i).unsqueeze(-1).unsqueeze(-1); };
    const auto write = [&](const Tensor& by) {
      return at::matmul(k.mul(last(by, i).unsqueeze(-1)).transpose(-1, -2), dz);
    };
    m = m.mul(scalar(kept)).add(z.mul(scalar(f))).sub(write(g));
    z = z.mul(scalar(carried)).sub(write(n));
  }
  return tokens_of(outs);
}

// q, k, v, theta, gain, norm_weight, norm_bias; the memory has a bias.
Tensor ttt_chunks(const std::vector<Tensor>& x, int64_t chunk) {
  std::vector<Tensor> c;
  for (int i = 0; i < 5; ++i) c.push_back(chunks_of(x[i], chunk));
  const Tensor w = x[5].unsqueeze(1), b = x[6].unsqueeze(1);
  const Tensor reads = at::matmul(c[0], c[1].transpose(-1, -2))
                           .add(1)
                           .mul(c[4].unsqueeze(-1))
                           .mul(c[3].unsqueeze(-2))
                           .tril();
  Tensor m = at::zeros({x[0].size(0), x[0].size(2), x[0].size(3), x[2].size(3)}, x[0].options());
  Tensor bias = at::zeros({x[0].size(0), x[0].size(2), 1, x[2].size(3)}, x[0].options());
  std::vector<Tensor> outs;
  for (int64_t i = 0; i < c[0].size(2); ++i) {
    const auto at_i = [&](const Tensor& t) { return t.select(2, i); };
    const Tensor k = at_i(c[1]);
    const Tensor dz = norm_gradient(at::matmul(k, m).add(bias), at_i(c[2]), w, b);
    outs.push_back(at::matmul(at_i(c[0]), m).add(bias).sub(at::matmul(at_i(reads), dz)));
    const Tensor last = at_i(c[4]).slice(-1, chunk - 1).unsqueeze(-1);
    const Tensor step = dz.mul(at_i(c[3]).unsqueeze(-1)).mul(last);
    m = m.sub(at::matmul(k.transpose(-1, -2), step));
    bias = bias.sub(step.sum(2, true));
  }
  return tokens_of(outs);
}

CallKind memory(int64_t tokens, int64_t heads, int64_t width, int64_t chunk, int64_t products) {
  CallKind k;
  k.engine = "learn";
  k.peer = "pytorch-chunks";
  k.sizes = {{"T", tokens}, {"K", width}, {"V", width}, {"H", heads}, {"chunk", chunk}};
  k.flops = tokens * heads * (2 * products * width * width + 2 * chunk * width);
  k.out = tokens * heads * width;
  return k;
}
std::vector<Tensor> queries_keys_values(int64_t tokens, int64_t heads, int64_t width) {
  const Tensor k = at::randn({1, tokens, heads, width});
  return {at::randn({1, tokens, heads, width}), k.div(k.norm(2, at::IntArrayRef{3}, true)),
          at::randn({1, tokens, heads, width})};
}

CallKind titans(int64_t tokens, int64_t heads, int64_t width, int64_t chunk) {
  CallKind k = memory(tokens, heads, width, chunk, 5);
  k.name = "titans";
  k.inputs = [=] {
    std::vector<Tensor> x = queries_keys_values(tokens, heads, width);
    const auto gate = [&](double from, double to) {
      return at::rand({1, tokens, heads}).mul(to - from).add(from);
    };
    for (const Tensor& t : {gate(0.01, 0.1), gate(0.3, 0.9), gate(0.01, 0.05)}) x.push_back(t);
    return x;
  };
  k.ours = [=](const auto& x) {
    op::LearnTensors t;
    t.q = x[0], t.k = x[1], t.v = x[2], t.alpha = x[3], t.eta = x[4], t.theta = x[5];
    op::LearnOptions options;
    options.chunk = chunk;
    op::learn(t, options);
    return t.out;
  };
  k.peers = [=](const auto& x) { return titans_chunks(x, chunk); };
  return k;
}

CallKind ttt(int64_t tokens, int64_t heads, int64_t width, int64_t chunk) {
  CallKind k = memory(tokens, heads, width, chunk, 3);
  k.name = "ttt";
  k.inputs = [=] {
    std::vector<Tensor> x = queries_keys_values(tokens, heads, width);
    x.push_back(at::rand({1, tokens, heads}).mul(0.05));
    x.push_back(at::rand({1, tokens, heads}).mul(0.5).add(0.2));
    x.push_back(at::rand({heads, width}).add(0.5));
    x.push_back(at::randn({heads, width}).mul(0.1));
    return x;
  };
  k.ours = [=](const auto& x) {
    op::LearnTensors t;
    t.q = x[0], t.k = x[1], t.v = x[2], t.theta = x[3], t.gain = x[4];
    t.norm_weight = x[5], t.norm_bias = x[6];
    op::LearnOptions options;
    options.chunk = chunk, options.norm = 1, options.bias = 1;
    op::learn(t, options);
    return t.out;
  };
  k.peers = [=](const auto& x) { return ttt_chunks(x, chunk); };
  return k;
}

}  // namespace

std::vector<Case> learn_cases(bool quick) {
  const int64_t tokens = quick ? 128 : 4096, heads = 8, width = quick ? 32 : 64;
  std::vector<Case> cases;
  for (const bool backward : {false, true}) {
    const int64_t t = backward ? std::min<int64_t>(tokens, 1024) : tokens;
    for (CallKind k : {titans(t, heads, width, 64), ttt(t, heads, width, 16)}) {
      k.backward = backward;
      cases.push_back(call_case(k));
    }
  }
  return cases;
}

}  // namespace heed::bench
