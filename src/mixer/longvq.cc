// LongVQ: softmax attention over keys that are replaced by their nearest codewords, so that the
// past beyond a window is a count and a mean value per codeword. Liu et al., "LongVQ", arXiv
// 2404.11163; the linear-time form as in Lingle, "Transformer-VQ", arXiv 2309.16354 (section 3).
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "io/error.h"
#include "mixer/common/recurrent_layer.h"
#include "mixer/common/rows.h"
#include "mixer/registry.h"
#include "op/ewscan.h"

namespace heed::mixer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Everything by head: q, khat [B,H,T,K], v [B,H,T,V], z int64 [B,H,T], codebook [H,M,K], bias [H,W]
// (W = 0: none).
struct Attention {
  at::Tensor q, khat, v, z, codebook, bias;
  double scale = 1;
  int64_t chunk = 64;

  int64_t tokens() const { return q.size(2); }
  int64_t chunks() const { return (tokens() + chunk - 1) / chunk; }
  int64_t begin(int64_t c) const { return std::max<int64_t>(c, 0) * chunk; }
  int64_t end(int64_t c) const { return std::min((c + 1) * chunk, tokens()); }

  // i - j of queries [q0, q1) and keys [k0, k1).
  at::Tensor distances(int64_t q0, int64_t q1, int64_t k0, int64_t k1) const {
    const auto options = at::TensorOptions(at::kLong).device(q.device());
    return at::arange(q0, q1, options).unsqueeze(1).sub(at::arange(k0, k1, options));
  }

  // Logits of queries [q0, q1) at the keys [k0, k1), with bias, -inf after the query.
  at::Tensor logits(int64_t q0, int64_t q1, int64_t k0, int64_t k1) const {
    at::Tensor x = at::matmul(q.slice(2, q0, q1), khat.slice(2, k0, k1).transpose(2, 3)).mul(scale);
    const at::Tensor distance = distances(q0, q1, k0, k1);
    if (bias.size(1) > 0) {
      const int64_t width = bias.size(1);
      const at::Tensor index = distance.clamp(0, width - 1).flatten();
      const at::Tensor near = bias.index_select(1, index).view({bias.size(0), q1 - q0, k1 - k0});
      x = x.add(near.masked_fill(distance.ge(width), 0.0));
    }
    return x.masked_fill(distance.lt(0), -std::numeric_limits<double>::infinity());
  }

  // Logits at the codewords, [B,H,n,M].
  at::Tensor code_logits(int64_t q0, int64_t q1) const {
    return at::matmul(q.slice(2, q0, q1), codebook.transpose(1, 2)).mul(scale);
  }
};

// What is kept of the tokens beyond the window: [B,H,M] and [B,H,M,V].
struct Memory {
  at::Tensor count, sum;

  explicit Memory(const Attention& a)
      : count(at::zeros({a.q.size(0), a.q.size(1), a.codebook.size(1)}, a.v.options())),
        sum(at::zeros({a.q.size(0), a.q.size(1), a.codebook.size(1), a.v.size(3)}, a.v.options())) {
  }

  void absorb(const Attention& a, int64_t begin, int64_t end) {
    const at::Tensor codes =
        at::one_hot(a.z.slice(2, begin, end), a.codebook.size(1)).to(a.v.scalar_type());
    count = count.add(codes.sum(2));
    sum = sum.add(at::matmul(codes.transpose(2, 3), a.v.slice(2, begin, end)));
  }
  at::Tensor mean() const { return sum.div(count.clamp_min(1.0).unsqueeze(-1)); }
};

// Queries [q0, q1): the memory and the keys [k0, k1) in one softmax. out [B,H,n,V], lse [B,H,n].
std::pair<at::Tensor, at::Tensor> read(const Attention& a, const Memory& memory, int64_t q0,
                                       int64_t q1, int64_t k0, int64_t k1) {
  const at::Tensor old = a.code_logits(q0, q1).add(memory.count.log().unsqueeze(2));
  const at::Tensor all = at::cat({old, a.logits(q0, q1, k0, k1)}, -1);
  const at::Tensor lse = all.logsumexp(-1);
  const at::Tensor weights = all.sub(lse.unsqueeze(-1)).exp();
  const int64_t codes = old.size(3);
  const at::Tensor out = at::matmul(weights.slice(-1, 0, codes), memory.mean())
                             .add(at::matmul(weights.slice(-1, codes), a.v.slice(2, k0, k1)));
  return {out, lse};
}

// Chunk by chunk: a query sees its own chunk and the one before it token by token, and the older
// ones in the memory. Gradients pass straight through the codewords to k.
class Chunked : public torch::autograd::Function<Chunked> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& khat,
                            const at::Tensor& v, const at::Tensor& bias, const at::Tensor& z,
                            const at::Tensor& codebook, double scale, int64_t chunk) {
    const Attention a = {q, khat, v, z, codebook, bias, scale, chunk};
    Memory memory(a);
    std::vector<at::Tensor> outs = {at::zeros_like(v.slice(2, 0, 0))};
    std::vector<at::Tensor> lses = {at::zeros_like(q.slice(2, 0, 0).select(3, 0))};
    for (int64_t c = 0; c < a.chunks(); ++c) {
      if (c >= 2) memory.absorb(a, a.begin(c - 2), a.end(c - 2));
      auto [out, lse] = read(a, memory, a.begin(c), a.end(c), a.begin(c - 1), a.end(c));
      outs.push_back(out);
      lses.push_back(lse);
    }
    const at::Tensor out = at::cat(outs, 2);
    context->save_for_backward({q, khat, v, bias, z, codebook, out, at::cat(lses, 2)});
    context->saved_data["scale"] = scale;
    context->saved_data["chunk"] = chunk;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    Attention a = {saved[0], saved[1], saved[2], saved[4], saved[5], saved[3]};
    a.scale = context->saved_data["scale"].toDouble();
    a.chunk = context->saved_data["chunk"].toInt();
    Gradients d(a, grads[0], saved[6], saved[7]);
    d.run();
    return {d.dq, d.dk, d.dv, d.dbias, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }

 private:
  // With p_ij the weights, D_i = g_i.o_i: dv_j = sum_i p_ij g_i, and the logit's gradient is
  // p_ij (g_i.v_j - D_i). For keys in the memory p_ij depends on the codeword alone, so sums over
  // the later queries by codeword serve all of its tokens.
  struct Gradients {
    const Attention& a;
    at::Tensor g, lse, delta;
    at::Tensor dq, dk, dv, dbias;
    at::Tensor later_g, later_qg, later_q;  // by codeword: sum p g, sum p q g^T, sum p D q

    Gradients(const Attention& attention, const at::Tensor& grad, const at::Tensor& out,
              const at::Tensor& logsum)
        : a(attention), g(grad), lse(logsum), delta(grad.mul(out).sum(-1)) {
      dq = at::zeros_like(a.q);
      dk = at::zeros_like(a.khat);
      dv = at::zeros_like(a.v);
      dbias = at::zeros_like(a.bias);
      const int64_t b = a.q.size(0), h = a.q.size(1), m = a.codebook.size(1);
      later_g = at::zeros({b, h, m, a.v.size(3)}, g.options());
      later_qg = at::zeros({b, h, m, a.q.size(3), a.v.size(3)}, g.options());
      later_q = at::zeros({b, h, m, a.q.size(3)}, g.options());
    }

    void run() {
      std::vector<Memory> memories;
      Memory memory(a);
      for (int64_t c = 0; c < a.chunks(); ++c) {
        if (c >= 2) memory.absorb(a, a.begin(c - 2), a.end(c - 2));
        memories.push_back(memory);
      }
      for (int64_t c = a.chunks() - 1; c >= 0; --c) {
        if (c + 2 < a.chunks()) gather_queries(a.begin(c + 2), a.end(c + 2));
        near(c);
        if (c >= 2) memory_to_queries(c, memories[static_cast<size_t>(c)]);
        if (c + 2 < a.chunks()) tokens_of_memory(c);
      }
    }

    at::Tensor code_weights(int64_t q0, int64_t q1) const {
      return a.code_logits(q0, q1).sub(lse.slice(2, q0, q1).unsqueeze(-1)).exp();
    }

    void gather_queries(int64_t q0, int64_t q1) {
      const at::Tensor p = code_weights(q0, q1), q = a.q.slice(2, q0, q1), gs = g.slice(2, q0, q1);
      later_g.add_(at::matmul(p.transpose(2, 3), gs));
      const at::Tensor pq = p.unsqueeze(-1).mul(q.unsqueeze(-2)).flatten(3);  // [B,H,n,M K]
      later_qg.add_(at::matmul(pq.transpose(2, 3), gs).view(later_qg.sizes()));
      later_q.add_(at::matmul(p.transpose(2, 3), q.mul(delta.slice(2, q0, q1).unsqueeze(-1))));
    }

    void near(int64_t c) {
      const int64_t q0 = a.begin(c), q1 = a.end(c), k0 = a.begin(c - 1), k1 = a.end(c);
      const at::Tensor p = a.logits(q0, q1, k0, k1).sub(lse.slice(2, q0, q1).unsqueeze(-1)).exp();
      const at::Tensor gs = g.slice(2, q0, q1), v = a.v.slice(2, k0, k1);
      const at::Tensor dx =
          p.mul(at::matmul(gs, v.transpose(2, 3)).sub(delta.slice(2, q0, q1).unsqueeze(-1)));
      dv.slice(2, k0, k1).add_(at::matmul(p.transpose(2, 3), gs));
      dq.slice(2, q0, q1).add_(at::matmul(dx, a.khat.slice(2, k0, k1)), a.scale);
      dk.slice(2, k0, k1).add_(at::matmul(dx.transpose(2, 3), a.q.slice(2, q0, q1)), a.scale);
      if (dbias.size(1) == 0) return;
      const at::Tensor distance = a.distances(q0, q1, k0, k1).flatten();
      const at::Tensor inside =
          distance.ge(0).logical_and(distance.lt(dbias.size(1))).nonzero().squeeze(-1);
      dbias.index_add_(1, distance.index_select(0, inside),
                       dx.sum(0).flatten(1).index_select(1, inside));
    }

    void memory_to_queries(int64_t c, const Memory& memory) {
      const int64_t q0 = a.begin(c), q1 = a.end(c);
      const at::Tensor gu = at::matmul(g.slice(2, q0, q1), memory.sum.transpose(2, 3));
      const at::Tensor dn = delta.slice(2, q0, q1).unsqueeze(-1).mul(memory.count.unsqueeze(2));
      dq.slice(2, q0, q1).add_(at::matmul(code_weights(q0, q1).mul(gu.sub(dn)), a.codebook),
                               a.scale);
    }

    // The tokens of chunk c, from all queries two chunks later and on.
    void tokens_of_memory(int64_t c) {
      const int64_t k0 = a.begin(c), k1 = a.end(c);
      const at::Tensor z = a.z.slice(2, k0, k1).unsqueeze(-1);
      const auto by_token = [&](const at::Tensor& by_code) {
        const at::Tensor flat = by_code.flatten(3);
        return flat.gather(2, z.expand({-1, -1, -1, flat.size(3)}));
      };
      dv.slice(2, k0, k1).add_(by_token(later_g));
      const at::Tensor qg = by_token(later_qg).unflatten(3, {a.q.size(3), a.v.size(3)});
      const at::Tensor dx = at::matmul(qg, a.v.slice(2, k0, k1).unsqueeze(-1)).squeeze(-1);
      dk.slice(2, k0, k1).add_(dx.sub(by_token(later_q)), a.scale);
    }
  };
};

// Token by token, with the same two parts.
at::Tensor decode(const Attention& a) {
  Memory memory(a);
  std::vector<at::Tensor> outs = {at::zeros_like(a.v.slice(2, 0, 0))};
  for (int64_t t = 0; t < a.tokens(); ++t) {
    const int64_t c = t / a.chunk;
    if (t % a.chunk == 0 && c >= 2) memory.absorb(a, a.begin(c - 2), a.end(c - 2));
    outs.push_back(read(a, memory, t, t + 1, a.begin(c - 1), t + 1).first);
  }
  return at::cat(outs, 2);
}

// Takes the nearest codeword of each k [B,H,T,K] into a.z and a.khat: the codeword's value, k's
// gradient. Nearest in float64, so that every form and type chooses the same; ties: the lower
// index.
void quantise(Attention& a, const at::Tensor& k) {
  const at::Tensor codes = a.codebook.to(at::kDouble);
  const at::Tensor distance = codes.square().sum(-1).unsqueeze(1).sub(
      at::matmul(k.detach().to(at::kDouble), codes.transpose(1, 2)), 2.0);
  a.z = std::get<1>(distance.min(-1));
  const at::Tensor index = a.z.unsqueeze(-1).expand({-1, -1, -1, k.size(3)});
  const at::Tensor nearest =
      a.codebook.unsqueeze(0).expand({k.size(0), -1, -1, -1}).gather(2, index);
  a.khat = nearest.add(k.sub(k.detach()));
}

NamedTensors longvq_core(const CoreCall& call) {
  const at::ScalarType type = call.get("v").scalar_type();
  const at::ScalarType compute = type == at::kDouble ? at::kDouble : at::kFloat;
  const auto by_head = [&](const char* name) {
    return call.get(name).to(compute).transpose(1, 2).contiguous();
  };
  Attention a;
  a.q = by_head("q");
  a.v = by_head("v");
  a.codebook = call.get("codebook").detach();
  a.bias = call.get("bias");
  if (!a.bias.defined()) a.bias = at::zeros({a.q.size(1), 0}, a.q.options());
  a.chunk = call.settings.integer("chunk");
  const double width = static_cast<double>(std::max<int64_t>(a.q.size(3), 1));
  a.scale = call.settings.number("scale", 1.0 / std::sqrt(width));
  if (a.bias.size(1) > a.chunk) {
    throw UsageError("longvq: tensor bias has W={}, expected at most chunk={}", a.bias.size(1),
                     a.chunk);
  }
  quantise(a, by_head("k"));
  at::Tensor out;
  if (call.form == "naive") {
    out = at::matmul(a.logits(0, a.tokens(), 0, a.tokens()).softmax(-1), a.v);
  } else if (call.form == "chunked") {
    out = Chunked::apply(a.q, a.khat, a.v, a.bias, a.z, a.codebook, a.scale, a.chunk);
  } else {
    out = decode(a);
  }
  return {{"out", out.transpose(1, 2).to(type)}};
}

// X' = EMA(x) (a sum of `expansion` averages a channel); Z = silu(X' Wz), q = kq . Z + mq, k = kk .
// Z
// + mk, v = silu(x Wv); o the attention above; y = phi . silu(X' Wh + (g . o) Wu) + (1 - phi) . x
// with g = silu(X' Wg), phi = sigmoid(X' Wp). In training the loss "longvq" pulls keys and
// codewords together.
class LongVqLayer : public RecurrentLayer {
 public:
  explicit LongVqLayer(const LayerConfig& config) : RecurrentLayer("longvq") {
    LayerOptions options("longvq", config);
    heads_ = options.heads();
    key_dim_ = options.head_width("expand_k", 1.0);
    value_dim_ = options.head_width("expand_v", 1.0);
    chunk_ = options.integer("chunk", 64);
    const int64_t codes = options.integer("codes", 64);
    const int64_t near = options.integer("bias", std::min<int64_t>(16, chunk_));
    const int64_t expansion = options.integer("expansion", 16);
    commitment_ = options.number("commitment", 0.25, 0);
    options.close();
    if (near > chunk_) {
      throw UsageError("mixer longvq: option bias is {}, expected at most chunk = {}", near,
                       chunk_);
    }
    const int64_t c = options.hidden(), hk = heads_ * key_dim_, hv = heads_ * value_dim_;
    const auto normal = [](at::IntArrayRef sizes, double deviation) {
      return at::empty(sizes, init_options()).normal_(0, deviation);
    };
    params_.tensor(alpha_, "ema.alpha", normal({c, expansion}, 0.2));
    params_.tensor(delta_, "ema.delta", normal({c, expansion}, 0.2));
    params_.tensor(beta_, "ema.beta", normal({c, expansion}, 0.02).add(1));
    params_.tensor(eta_, "ema.eta", normal({c, expansion}, 1.0 / std::sqrt(expansion)));
    params_.matrix(z_, "z_proj.weight", hk, c);
    params_.tensor(turn_, "qk.scale", normal({2, hk}, 0.02).add(1));
    params_.tensor(shift_, "qk.shift", at::zeros({2, hk}, init_options()));
    projection(v_, "v", hv, c);
    params_.matrix(reset_, "g_proj.weight", hv, c);
    params_.matrix(update_, "p_proj.weight", c, c);
    params_.matrix(new_, "h_proj.weight", c, c);
    params_.matrix(read_, "u_proj.weight", c, hv);
    params_.tensor(codebook_, "codebook",
                   normal({heads_, codes, key_dim_}, 1.0 / std::sqrt(key_dim_)));
    params_.tensor(bias_, "bias", at::zeros({heads_, near}, init_options()));
    ema_ = fixed("ema", {1, c * expansion});
    count_ = fixed("count", {1, heads_, codes});
    sum_ = fixed("sum", {1, heads_, codes, value_dim_});
    recent_ = history("recent", heads_ * (key_dim_ + value_dim_), 2 * chunk_);
    token_flops_ = 2 * 2 * chunk_ * heads_ * (key_dim_ + value_dim_) + 6 * c * expansion;
  }

  Traits traits() const override { return recurrent_traits(false); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const at::Tensor averaged = average(x, pass).to(x.scalar_type());
    const at::Tensor z = at::silu(linear(averaged, z_)).to(at::kFloat);
    const auto by_head = [&](const at::Tensor& t) {
      return mixer::heads(t.to(at::kFloat), heads_).transpose(1, 2).contiguous();
    };
    const auto part = [&](int64_t i) {
      return by_head(z.mul(turn_[i].to(at::kFloat)).add(shift_[i].to(at::kFloat)));
    };
    Attention a;
    a.q = part(0);
    a.v = by_head(at::silu(linear(x, v_.weight)));
    a.codebook = codebook_.detach().to(at::kFloat);
    a.bias = bias_.to(at::kFloat);
    a.scale = 1.0 / std::sqrt(static_cast<double>(key_dim_));
    a.chunk = chunk_;
    const at::Tensor k = part(1);
    quantise(a, k);
    if (Aux* aux = pass.call().aux; aux && at::GradMode::is_enabled()) {
      const at::Tensor index = a.z.unsqueeze(-1).expand({-1, -1, -1, key_dim_});
      const at::Tensor nearest =
          codebook_.to(at::kFloat).unsqueeze(0).expand({k.size(0), -1, -1, -1}).gather(2, index);
      const at::Tensor commitment = k.sub(nearest.detach()).square().mean().mul(commitment_);
      aux->add("longvq", commitment.add(nearest.sub(k.detach()).square().mean()));
    }
    const at::Tensor o = attended(a, pass).transpose(1, 2).flatten(2).to(x.scalar_type());
    const at::Tensor reset = at::silu(linear(averaged, reset_));
    const at::Tensor update = at::sigmoid(linear(averaged, update_));
    const at::Tensor candidate = at::silu(linear(averaged, new_).add(linear(reset.mul(o), read_)));
    return x.add(update.mul(candidate.sub(x)));
  }

 private:
  // h_t = alpha beta x_t + (1 - alpha delta) h_{t-1}, read by eta: [B,T,C].
  at::Tensor average(const at::Tensor& x, RecurrentPass& pass) {
    using X = op::EwscanTensors;
    const at::Tensor alpha = at::sigmoid(alpha_.to(at::kFloat));
    X t;
    t.log_decay = at::log1p(alpha.mul(at::sigmoid(delta_.to(at::kFloat))).neg()).flatten();
    t.x = x.to(at::kFloat).unsqueeze(-1).mul(alpha.mul(beta_.to(at::kFloat))).flatten(2);
    const at::Tensor h = pass.advance<X>(
        std::move(t), {{ema_, &X::initial_state, &X::final_state}},
        [](X& y, const at::Tensor& pack) { y = op::ewscan(y, pack); },
        [](X& y) {
          const kernel::NoOptions none;
          op::ewscan_engine().step(op::tensor_list(y), &none);
        });
    return h.unflatten(2, alpha_.sizes()).mul(eta_.to(at::kFloat)).sum(-1);
  }

  at::Tensor attended(const Attention& a, RecurrentPass& pass) {
    const auto all = [](const Attention& s) {
      return Chunked::apply(s.q, s.khat, s.v, s.bias, s.z, s.codebook, s.scale, s.chunk);
    };
    if (!pass.decodes() && !pass.call().cu_seqlens.defined()) return all(a);
    std::vector<at::Tensor> outs;
    for (int64_t n = 0; n < pass.sequences(); ++n) {
      const auto own = [&](const at::Tensor& t) {  // tokens are the third dimension here
        return pass.sequence(t.transpose(1, 2), n).transpose(1, 2);
      };
      Attention s = a;
      s.q = own(a.q), s.khat = own(a.khat), s.v = own(a.v),
      s.z = own(a.z.unsqueeze(-1)).squeeze(-1);
      const at::Tensor out = pass.decodes() ? continued(s, *pass.call().states[n]) : all(s);
      outs.push_back(out.transpose(1, 2));
    }
    return pass.joined(outs, a.v.transpose(1, 2)).transpose(1, 2);
  }

  // One sequence from its state: the tokens of `recent` come first, from the beginning of a chunk.
  at::Tensor continued(Attention& a, State& state) const {
    const at::NoGradGuard no_grad;
    const int64_t past = state.length(), inside = past % chunk_;
    const int64_t before = inside == 0 ? 2 * chunk_ : chunk_ + inside;
    const int64_t first = std::max<int64_t>(before - past, 0);  // rows of no token
    at::Tensor& recent = state.tensor(recent_);
    const auto rows = [](const at::Tensor& t) { return t[0].transpose(0, 1).flatten(1); };
    const at::Tensor joined =
        at::cat({recent.to(at::kFloat), at::cat({rows(a.khat), rows(a.v)}, 1)});
    const at::Tensor used = joined.slice(0, 2 * chunk_ - before);
    const auto by_head = [&](int64_t begin, int64_t dim) {
      return used.slice(1, begin, begin + heads_ * dim)
          .unflatten(1, {heads_, dim})
          .transpose(0, 1)
          .unsqueeze(0);
    };
    a.v = by_head(heads_ * key_dim_, value_dim_);
    quantise(a, by_head(0, key_dim_));  // a codeword's nearest is itself
    a.q = at::constant_pad_nd(a.q, {0, 0, before, 0});
    Memory memory(a);
    at::Tensor &count = state.tensor(count_), &sum = state.tensor(sum_);
    memory.count = count.clone(), memory.sum = sum.clone();
    std::vector<at::Tensor> outs = {a.v.slice(2, 0, 0)};
    for (int64_t c = before / chunk_; c < a.chunks(); ++c) {
      const int64_t begin = c * chunk_, q0 = std::max(before, begin), q1 = a.end(c);
      if (q0 == q1) continue;
      if (q0 == begin && begin - 2 * chunk_ >= first) {
        memory.absorb(a, begin - 2 * chunk_, begin - chunk_);
      }
      outs.push_back(read(a, memory, q0, q1, std::max(begin - chunk_, first), q1).first);
    }
    count.copy_(memory.count), sum.copy_(memory.sum);
    recent.copy_(joined.slice(0, joined.size(0) - 2 * chunk_));
    return at::cat(outs, 2);
  }

  int64_t heads_, key_dim_, value_dim_, chunk_;
  double commitment_;
  at::Tensor alpha_, delta_, beta_, eta_, turn_, shift_, codebook_, bias_;
  HeadTokens v_;
  Weight z_, reset_, update_, new_, read_;
  size_t ema_, count_, sum_, recent_;
};

}  // namespace

void register_longvq(Registry& registry) {
  Mechanism m;
  m.card.id = "longvq";
  m.card.equations =
      "z_j = argmin_s |k_j - codebook_s|,  k^_j = codebook_{z_j}\n"
      "x_ij = scale q_i.k^_j + bias_{i-j} (i-j < W)\n"
      "out_i = sum_{j<=i} exp(x_ij) v_j / sum_{j<=i} exp(x_ij)";
  m.card.state_size = "H (M (V+1) + 2 chunk (K+V))";
  ApplyRow& row = m.card.apply;
  row.inputs = {token("q", "B,T,H,K"), token("k", "B,T,H,K").straight_through(),
                token("v", "B,T,H,V"), gate("codebook", "H,M,K").constant(),
                gate("bias", "H,W").maybe()};
  row.settings = {scale_setting(), chunk_setting()};
  row.outputs = {output("out", "B,T,H,V")};
  row.forms = {"chunked", "naive", "recurrent"};
  m.card.tests.sizes = {{"K", 7}, {"V", 5}, {"M", 6}, {"W", 9}};
  m.card.tests.large = {{"K", 64}, {"V", 64}, {"M", 40}};
  m.traits = recurrent_traits(false);
  m.core = longvq_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<LongVqLayer>(config); };
  m.card.tests.layer.options = R"({"chunk": 4, "codes": 5, "bias": 3, "expansion": 2})";
  m.card.tests.layer.smooth = R"({"chunk": 4, "codes": 1, "bias": 3, "expansion": 2})";
  registry.add(std::move(m));
}

}  // namespace heed::mixer
