// The naive forms of scan, token by token and chunked.
//
// clang-format off
// Chunked: with b_i = sum_{j<=i} log a_j inside the chunk (b_0 = 0) and E(i,j) = exp(b_i - b_j),
//   (I - A) Y = (r . e^{b'}) S0 + G V,   A_ij = sum_d r_id E'(i,j)_d p_jd,  G_ij = sum_d r_id E'(i,j)_d k_jd,  j < i
//   out_i = scale [(q_i . e^b) S0 + sum_j P_ij y_j + R_ij v_j],     P_ij = q_i.E(i,j).p_j,  R_ij = q_i.E(i,j).k_j
//   S_L = diag(e^{b_L}) S0 + sum_j (p_j . E(L,j)) y_j^T + (k_j . E(L,j)) v_j^T
// clang-format on
//
// where b' = b_{i-1} for the general correction (reads before decay) and b_i for delta (reads after
// decay).
#include <ATen/ATen.h>

#include "op/scan.h"

namespace heed::op {
namespace {

using at::Tensor;
using at::indexing::None;

// All tensors of one call in the dtype of computation; decay as [B,T,H,1 or K] or undefined.
struct Prepared {
  Tensor q, k, v, p, r, beta, log_decay, bonus, state;
  at::ScalarType compute;
};

Prepared prepare(const ScanTensors& in, const ScanOptions& options) {
  Prepared x;
  x.compute = in.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto cast = [&](const Tensor& t) { return t.defined() ? t.to(x.compute) : t; };
  const int64_t batch = in.q.size(0), tokens = in.q.size(1), heads = in.q.size(2);
  x.q = cast(in.q).mul(options.scale);
  x.k = cast(in.k);
  x.v = cast(in.v);
  x.p = cast(in.p);
  x.r = cast(in.r);
  x.beta = cast(in.beta);
  x.bonus = cast(in.bonus);
  x.log_decay = cast(in.log_decay);
  if (in.log_decay.defined() && in.log_decay.dim() == 1) {
    x.log_decay = x.log_decay.view({1, 1, heads, 1}).expand({batch, tokens, heads, 1});
  } else if (in.log_decay.defined() && in.log_decay.dim() == 3) {
    x.log_decay = x.log_decay.unsqueeze(-1);
  }
  x.state = in.initial_state.defined()
                ? cast(in.initial_state)
                : at::zeros({batch, heads, in.q.size(3), in.v.size(3)}, x.q.options());
  return x;
}

// Tokens [begin, end) of every tensor.
Prepared slice(const Prepared& x, int64_t begin, int64_t end) {
  const auto cut = [&](const Tensor& t) { return t.defined() ? t.slice(1, begin, end) : t; };
  Prepared y = x;
  for (Tensor Prepared::*member : {&Prepared::q, &Prepared::k, &Prepared::v, &Prepared::p,
                                   &Prepared::r, &Prepared::beta, &Prepared::log_decay}) {
    y.*member = cut(x.*member);
  }
  return y;
}

// One sequence (or a batch of equal lengths): changes x.state to the state after the last token.
Tensor token_loop(Prepared& x, bool read_before) {
  std::vector<Tensor> outs;
  Tensor s = x.state;  // [B,H,K,V]
  for (int64_t t = 0; t < x.q.size(1); ++t) {
    const Tensor q = x.q.select(1, t).unsqueeze(-2);  // [B,H,1,K]
    const Tensor k = x.k.select(1, t).unsqueeze(-1);  // [B,H,K,1]
    const Tensor v = x.v.select(1, t).unsqueeze(-2);  // [B,H,1,V]
    Tensor decayed = s;
    if (x.log_decay.defined()) {
      decayed = s.mul(at::exp(x.log_decay.select(1, t)).unsqueeze(-1));
    }
    Tensor next = decayed;
    if (x.p.defined()) {
      const Tensor read = at::matmul(x.r.select(1, t).unsqueeze(-2), s);
      next = next.add(x.p.select(1, t).unsqueeze(-1).mul(read));
    }
    if (x.beta.defined()) {
      const Tensor error = v.sub(at::matmul(k.transpose(-1, -2), decayed));
      next = next.add(k.mul(error.mul(x.beta.select(1, t).unsqueeze(-1).unsqueeze(-1))));
    } else {
      next = next.add(k.mul(v));
    }
    Tensor read = next;
    if (read_before) {
      read = x.bonus.defined() ? s.add(x.bonus.unsqueeze(-1).mul(k).mul(v)) : s;
    }
    outs.push_back(at::matmul(q, read).squeeze(-2));
    s = next;
  }
  x.state = s;
  return outs.empty() ? x.v : at::stack(outs, 1);
}

// The decays of chunks of L tokens, in log space: sums from the chunk start (b, float64) and how
// many resets (-inf) came up to and with each token. x - y is a decay only where the counts are
// equal.
struct LogDecay {
  Tensor sum;    // [B,H,N,L,1 or K] float64
  Tensor reset;  // the same, int64
};

LogDecay shifted(const LogDecay& d) {  // of the token before; 0 at the chunk start
  const auto shift = [](const Tensor& t) {
    return at::cat({at::zeros_like(t.slice(3, 0, 1)), t.slice(3, 0, t.size(3) - 1)}, 3);
  };
  return {shift(d.sum), shift(d.reset)};
}

// exp(x - y) where no reset lies between, else 0.
Tensor decay_between(const Tensor& x, const Tensor& y, const Tensor& x_reset, const Tensor& y_reset,
                     at::ScalarType compute) {
  const Tensor e = at::exp(x.sub(y).clamp_max(0.0)).to(compute);
  return e.mul(x_reset.eq(y_reset).to(compute));
}

// Lower triangle of sum_d left_id exp(x_i - y_j)_d right_jd, [B,H,N,L,L]; the diagonal too unless
// strict. Scalar decays multiply the product; per-channel ones go by sub-blocks of 16: a later
// block against an earlier one takes its own first row as reference, so that both factors are at
// most 1.
Tensor scores(const Tensor& left, const Tensor& right, const LogDecay& x, const LogDecay& y,
              bool strict) {
  const int64_t length = left.size(3);
  const at::ScalarType compute = left.scalar_type();
  const int64_t diagonal = strict ? -1 : 0;
  if (!x.sum.defined()) return at::matmul(left, right.transpose(-1, -2)).tril(diagonal);
  if (x.sum.size(4) == 1) {
    const Tensor e =
        decay_between(x.sum, y.sum.transpose(-1, -2), x.reset, y.reset.transpose(-1, -2), compute);
    return at::matmul(left, right.transpose(-1, -2)).mul(e).tril(diagonal);
  }
  constexpr int64_t kBlock = 16;
  std::vector<Tensor> rows;
  for (int64_t i = 0; i < length; i += kBlock) {
    const int64_t i_end = std::min(i + kBlock, length);
    const Tensor li = left.slice(3, i, i_end), xi = x.sum.slice(3, i, i_end),
                 ri = x.reset.slice(3, i, i_end);
    std::vector<Tensor> blocks;
    if (i > 0) {
      // The reference is the row before the block in the counting of y, which every x of the block
      // follows.
      const Tensor n = y.sum.slice(3, i - 1, i), n_reset = y.reset.slice(3, i - 1, i);
      const Tensor l = li.mul(decay_between(xi, n, ri, n_reset, compute));
      const Tensor rt = right.slice(3, 0, i).mul(
          decay_between(n, y.sum.slice(3, 0, i), n_reset, y.reset.slice(3, 0, i), compute));
      blocks.push_back(at::matmul(l, rt.transpose(-1, -2)));
    }
    const Tensor e =
        decay_between(xi.unsqueeze(4), y.sum.slice(3, i, i_end).unsqueeze(3), ri.unsqueeze(4),
                      y.reset.slice(3, i, i_end).unsqueeze(3), compute);  // [B,H,N,16,16,K]
    const Tensor own = li.unsqueeze(4).mul(e).mul(right.slice(3, i, i_end).unsqueeze(3)).sum(-1);
    blocks.push_back(own.tril(diagonal));
    if (i_end < length) {
      auto zeros = own.sizes().vec();
      zeros.back() = length - i_end;
      blocks.push_back(at::zeros(zeros, own.options()));
    }
    rows.push_back(blocks.size() == 1 ? blocks[0] : at::cat(blocks, 4));
  }
  return rows.size() == 1 ? rows[0] : at::cat(rows, 3);
}

// The tensors of a span by chunks, [B,H,N,L,*], and what is the same for every state: decays, the
// weights between tokens of a chunk, and the solved corrections.
struct Chunks {
  Tensor q_start, k_end, p_end, a_end;  // decayed from the chunk's start, and to its end
  Tensor v, beta, bonus;                // bonus: [B,H,N,L,1], of the token's own value
  Tensor read_k, read_p;                // what a token reads of keys and of p, [B,H,N,L,L]
  Tensor solve_state, solve_value;      // y = solve_state S + solve_value
  bool delta, general, decays;

  Chunks(const Prepared& x, int64_t length, bool read_before);

 private:
  Tensor from_start(const LogDecay& d, const Prepared& x) const {  // exp of the sum since the start
    return at::exp(d.sum).to(x.compute).mul(d.reset.eq(0).to(x.compute));
  }
  void solve(const Tensor& r, const Tensor& p, const Tensor& k, const LogDecay& correcting,
             const LogDecay& after, const Prepared& x);
  void decay_to_end(const Tensor& k, const Tensor& p, const LogDecay& after, int64_t length,
                    const Prepared& x);
};

Chunks::Chunks(const Prepared& x, int64_t length, bool read_before)
    : delta(x.beta.defined()), general(x.p.defined()), decays(x.log_decay.defined()) {
  const int64_t b = x.q.size(0), h = x.q.size(2), chunks = x.q.size(1) / length;
  const auto chunked = [&](const Tensor& u) {  // [B,T,H,D] -> [B,H,N,L,D]
    return u.reshape({b, chunks, length, h, u.size(3)}).permute({0, 3, 1, 2, 4});
  };
  const Tensor q = chunked(x.q), k = chunked(x.k);
  v = chunked(x.v);
  LogDecay after;
  if (decays) {
    const Tensor d = chunked(x.log_decay).to(at::kDouble);
    const Tensor is_reset = d.detach().isinf();
    after.sum = d.masked_fill(is_reset, 0.0).cumsum(3);
    after.reset = is_reset.to(at::kLong).cumsum(3);
  }
  const LogDecay before = decays ? shifted(after) : after;
  const LogDecay& reading = read_before ? before : after;
  q_start = decays ? q.mul(from_start(reading, x)) : q;
  // Effective values u_j are written with key k: v_j, or beta_j (v_j - y_j) for delta.
  read_k = scores(q, k, reading, after, read_before);
  // The bonus reads the token's own v, which no correction has touched.
  if (read_before && x.bonus.defined()) {
    bonus = q.mul(k).mul(x.bonus.view({1, h, 1, 1, x.bonus.size(1)})).sum(-1, true);
  }
  Tensor p;
  if (delta) {
    beta = x.beta.reshape({b, chunks, length, h}).permute({0, 3, 1, 2}).unsqueeze(-1);
    p = k.mul(beta).neg();
    solve(k, p, k, after, after, x);
  } else if (general) {
    p = chunked(x.p);
    read_p = scores(q, p, reading, after, read_before);
    solve(chunked(x.r), p, k, before, after, x);
  }
  decay_to_end(k, p, after, length, x);
}

void Chunks::solve(const Tensor& r, const Tensor& p, const Tensor& k, const LogDecay& correcting,
                   const LogDecay& after, const Prepared& x) {
  const Tensor a = scores(r, p, correcting, after, true);
  const Tensor g = delta ? a.neg() : scores(r, k, correcting, after, true);
  const Tensor r_start = decays ? r.mul(from_start(correcting, x)) : r;
  const Tensor system = at::eye(a.size(-1), a.options()).sub(a);
  const Tensor solved = at::linalg_solve_triangular(
      system, at::cat({r_start, at::matmul(g, v)}, -1), false, true, true);
  solve_state = solved.slice(-1, 0, r.size(-1));
  solve_value = solved.slice(-1, r.size(-1));
}

void Chunks::decay_to_end(const Tensor& k, const Tensor& p, const LogDecay& after, int64_t length,
                          const Prepared& x) {
  k_end = k;
  p_end = p;
  if (!decays) return;
  const Tensor last = after.sum.slice(3, length - 1), last_reset = after.reset.slice(3, length - 1);
  const Tensor e = decay_between(last, after.sum, last_reset, after.reset, x.compute);
  k_end = k.mul(e);
  if (general) p_end = p.mul(e);
  a_end = at::exp(last).to(x.compute).mul(last_reset.eq(0).to(x.compute)).transpose(-1, -2);
}

// A span of tokens whose number is a multiple of `length`: changes x.state, returns out [B,T,H,V].
Tensor chunked_span(Prepared& x, int64_t length, bool read_before) {
  const int64_t b = x.q.size(0), t = x.q.size(1), h = x.q.size(2), chunks = t / length;
  const Chunks c(x, length, read_before);
  std::vector<Tensor> outs;
  Tensor s = x.state;
  for (int64_t n = 0; n < chunks; ++n) {
    const auto of = [n](const Tensor& u) { return u.select(2, n); };
    Tensor value = of(c.v);
    Tensor y;
    if (c.delta || c.general) y = at::matmul(of(c.solve_state), s).add(of(c.solve_value));
    if (c.delta) value = value.sub(y).mul(of(c.beta));
    Tensor out = at::matmul(of(c.q_start), s).add(at::matmul(of(c.read_k), value));
    if (c.bonus.defined()) out = out.add(of(c.bonus).mul(of(c.v)));
    Tensor next = c.decays ? s.mul(of(c.a_end)) : s;
    next = next.add(at::matmul(of(c.k_end).transpose(-1, -2), value));
    if (c.general) {
      out = out.add(at::matmul(of(c.read_p), y));
      next = next.add(at::matmul(of(c.p_end).transpose(-1, -2), y));
    }
    outs.push_back(out);
    s = next;
  }
  x.state = s;
  return at::stack(outs, 2).permute({0, 2, 3, 1, 4}).reshape({b, t, h, x.v.size(3)});
}

Tensor chunk_loop(Prepared& x, int64_t length, bool read_before) {
  const int64_t tokens = x.q.size(1);
  if (tokens == 0) return x.v;
  // Spans keep the decay tensors of 16 x 16 x K numbers a block under about 128 MB.
  const int64_t per_token = x.q.size(0) * x.q.size(2) * x.q.size(3) * 16 * 8;
  const int64_t span = std::max<int64_t>((int64_t{128} << 20) / per_token / length, 1) * length;
  std::vector<Tensor> outs;
  for (int64_t begin = 0; begin < tokens; begin += span) {
    const int64_t end = std::min(begin + span, tokens);
    Prepared part = slice(x, begin, end);
    part.state = x.state;
    const int64_t padding = (length - (end - begin) % length) % length;
    if (padding > 0) {  // zero keys and decays leave the state as it is
      for (Tensor Prepared::*member : {&Prepared::q, &Prepared::k, &Prepared::v, &Prepared::p,
                                       &Prepared::r, &Prepared::beta, &Prepared::log_decay}) {
        Tensor& u = part.*member;
        if (!u.defined()) continue;
        std::vector<int64_t> pad(2 * (u.dim() - 1), 0);
        pad.back() = padding;
        u = at::constant_pad_nd(u, pad);
      }
    }
    Tensor out = chunked_span(part, length, read_before);
    outs.push_back(padding > 0 ? out.slice(1, 0, end - begin) : out);
    x.state = part.state;
  }
  return outs.size() == 1 ? outs[0] : at::cat(outs, 1);
}

}  // namespace

namespace naive {

void scan(ScanTensors& x, const ScanOptions& options) {
  Prepared p = prepare(x, options);
  x.out = token_loop(p, options.read_before != 0).to(x.v.scalar_type());
  x.final_state = p.state;
}

void scan_chunked(ScanTensors& x, const ScanOptions& options) {
  Prepared p = prepare(x, options);
  const int64_t length = std::min(options.chunk, std::max<int64_t>(x.q.size(1), 1));
  x.out = chunk_loop(p, length, options.read_before != 0).to(x.v.scalar_type());
  x.final_state = p.state;
}

}  // namespace naive

}  // namespace heed::op
