// Kernelised attention with relative positions: random features times a learned factor of the
// distance, which is a Toeplitz matrix: long texts run by FFT. Luo et al., "Stable, Fast and
// Accurate: Kernelized Attention with Relative Positional Encoding", arXiv 2106.12566 (eqs. 5-8,
// section 3.3).
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "io/error.h"
#include "mixer/common/recurrent_layer.h"
#include "mixer/common/rows.h"
#include "mixer/registry.h"
#include "op/toeplitz.h"

namespace heed::mixer {
namespace {

// x.w - |x|^2 / 2 of the normalised rows: the logarithms of the features, [B,H,T,m].
at::Tensor log_features(const at::Tensor& x, const at::Tensor& w, bool unit) {
  const at::Tensor length = at::sqrt(x.square().sum(-1, true));
  const double root = std::pow(static_cast<double>(x.size(-1)), 0.25);
  const at::Tensor y = unit ? x.div(length.clamp_min(1e-12)) : x.div(root);
  return at::matmul(y, w).sub(y.square().sum(-1, true).div(2)).transpose(1, 2);
}

at::Tensor naive(const at::Tensor& f, const at::Tensor& g, const at::Tensor& v,
                 const at::Tensor& c) {
  const int64_t queries = f.size(2), keys = g.size(2);
  const auto index = [&](int64_t n) { return at::arange(n, c.options().dtype(at::kLong)); };
  const at::Tensor lag = index(keys).unsqueeze(0).sub(index(queries).unsqueeze(1)).add(queries - 1);
  const at::Tensor factor = c.index_select(1, lag.flatten()).view({c.size(0), queries, keys});
  const at::Tensor weights = at::matmul(f, g.transpose(2, 3)).mul(factor);
  return at::matmul(weights, v).div(weights.sum(-1, true));
}

// out [B,T,H,V] in v's dtype. b [H, at least T+S-1], first that of lag -(T-1) (of a causal call
// whose queries are the last T of S tokens: -(S-1)); unit: map = nprf.
at::Tensor attend(const std::string& form, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, at::Tensor b, const at::Tensor& w, bool unit, bool causal) {
  const int64_t queries = q.size(1), keys = k.size(1);
  if (queries == 0 || keys == 0) {
    return at::zeros({q.size(0), queries, q.size(2), v.size(3)}, v.options());
  }
  // By runs of queries or, where that is less work (long texts, few features), by transforms.
  // A transform rounds all sums as it rounds the largest, those of later tokens too: in float64 the
  // short sums of a causal call keep their digits, and nothing of later tokens shows.
  const bool fft =
      form == "fft" ||
      (form == "parallel" && op::fft_is_faster(queries, keys, w.size(1), v.size(3), causal));
  const at::ScalarType type = q.scalar_type() == at::kDouble || fft ? at::kDouble : at::kFloat;
  const at::Tensor log_f = log_features(q.to(type), w.to(type), unit);
  const at::Tensor log_g = log_features(k.to(type), w.to(type), unit);
  // A factor of a row of f, of all g of a head, and of all c of a head is in both sums of the
  // ratio: the largest exponent of each is taken off, so that nothing overflows. Causal: that of
  // the first key stands for those of g, for no output may know of later ones.
  const at::Tensor f = at::exp(log_f.sub(log_f.amax({3}, true).detach()));
  const at::Tensor seen = causal ? log_g.slice(2, 0, 1) : log_g;
  const at::Tensor g = at::exp(log_g.sub(seen.amax({2, 3}, true).detach()));
  b = b.to(type).slice(1, 0, causal ? keys : queries + keys - 1);
  at::Tensor c = at::exp(b.sub(b.amax({1}, true).detach()));
  if (causal) c = at::constant_pad_nd(c, {0, queries - 1});
  const at::Tensor values = v.to(type).transpose(1, 2);
  if (form == "naive")
    return naive(f, g, values, c).transpose(1, 2).contiguous().to(v.scalar_type());
  const at::Tensor counted = at::cat({values, at::ones_like(values.slice(3, 0, 1))}, 3);
  const at::Tensor sums = fft ? op::weighted_toeplitz_fft(f, g, counted, c)
                              : op::weighted_toeplitz(f, g, counted, c, causal);
  const at::Tensor out = sums.slice(3, 0, v.size(3)).div(sums.slice(3, v.size(3)));
  return out.transpose(1, 2).contiguous().to(v.scalar_type());
}

NamedTensors kernel_rpe_fft_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k");
  const bool causal = call.settings.flag("causal");
  if (causal && k.size(1) != q.size(1)) {
    throw UsageError("kernel-rpe-fft: causal needs as many keys as queries, not {} and {}",
                     k.size(1), q.size(1));
  }
  return {{"out", attend(call.form, q, k, call.get("v"), call.get("b"), call.get("w"),
                         call.settings.is("map", "nprf"), causal)}};
}

// m orthogonal Gaussian directions: blocks of D orthogonal ones, with the lengths of Gaussian
// vectors. [D,m].
at::Tensor orthogonal_features(int64_t dim, int64_t count) {
  if (ShapesOnly::on()) return at::empty({dim, count}, init_options());
  std::vector<at::Tensor> blocks;
  for (int64_t m = 0; m < count; m += dim) {
    blocks.push_back(std::get<0>(at::linalg_qr(at::randn({dim, dim}))));
  }
  const at::Tensor length = at::randn({dim, count}).norm(2, 0, true);
  return at::cat(blocks, 1).slice(1, 0, count).mul(length).contiguous();
}

// y = o Wo, with b of all distances in `length` tokens (0 at first) and features w, both learned.
// Decoding keeps all keys and values.
class KernelRpeLayer : public RecurrentLayer {
 public:
  explicit KernelRpeLayer(const LayerConfig& config) : RecurrentLayer("kernel-rpe-fft") {
    LayerOptions options("kernel-rpe-fft", config);
    heads_ = options.heads();
    head_dim_ = options.head_dim();
    length_ = options.integer("length", 2048);
    unit_ = options.word("map", {"nprf", "prf"}) == "nprf";
    const int64_t features = options.integer("features", head_dim_);
    options.close();
    const int64_t c = options.hidden(), width = heads_ * head_dim_;
    projections(qkv_, width, width, width, c);
    projection(out_, "o", c, width);
    params_.tensor(b_, "b", at::zeros({heads_, 2 * length_ - 1}, init_options()));
    params_.tensor(w_, "features", orthogonal_features(head_dim_, features));
    kept_ = all_history("keys_values", 2 * width);
  }

  Traits traits() const override {
    Traits traits;
    traits.can_truncate = true;
    return traits;
  }
  bool takes(Pattern pattern) const override { return pattern != Pattern::kCausalCross; }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    Call& call = pass.call();
    const bool cross = call.pattern == Pattern::kNoncausalCross;
    if (cross && (!call.context.defined() || call.cu_seqlens.defined())) {
      throw UsageError(
          "mixer kernel-rpe-fft: a cross pattern needs a context [B,S,C], and no pack");
    }
    const at::Tensor& from = cross ? call.context : x;
    const at::Tensor q = pass.tokens(qkv_.q, x, heads_);
    const at::Tensor k = pass.tokens(qkv_.k, from, heads_), v = pass.tokens(qkv_.v, from, heads_);
    if (!pass.decodes() && !call.cu_seqlens.defined()) {
      return output(read("parallel", q, k, v, pass.causal(), 0));
    }
    std::vector<at::Tensor> outs;
    for (int64_t n = 0; n < pass.sequences(); ++n) {
      const at::Tensor own = pass.sequence(q, n);
      at::Tensor keys = pass.sequence(k, n), values = pass.sequence(v, n);
      if (pass.decodes()) {
        const at::Tensor rows = at::cat({keys.flatten(2), values.flatten(2)}, 2)[0];
        const auto all = call.states[n]->extend(kept_, rows).unsqueeze(0).chunk(2, 2);
        keys = mixer::heads(all[0], heads_), values = mixer::heads(all[1], heads_);
      }
      const std::string form = own.size(1) == 1 ? "naive" : "parallel";
      outs.push_back(read(form, own, keys, values, pass.causal(), pass.past(n)));
    }
    return output(pass.joined(outs, v));
  }

 private:
  // Queries behind `past` tokens of the keys.
  at::Tensor read(const std::string& form, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, bool causal, int64_t past) const {
    const int64_t queries = q.size(1), longest = std::max(past + queries, k.size(1));
    if (longest > length_) {
      throw UsageError(
          "mixer kernel-rpe-fft: {} tokens are more than the {} whose distances it knows; make "
          "its option length larger",
          longest, length_);
    }
    const at::Tensor b = b_.slice(1, length_ - past - queries);
    return attend(form, q, k, v, b, w_, unit_, causal);
  }
  at::Tensor output(const at::Tensor& o) const { return linear(o.flatten(2), out_.weight); }

  int64_t heads_, head_dim_, length_;
  bool unit_;
  QkvTokens qkv_;
  HeadTokens out_;
  at::Tensor b_, w_;
  size_t kept_;
};

}  // namespace

void register_kernel_rpe_fft(Registry& registry) {
  Mechanism m;
  m.card.id = "kernel-rpe-fft";
  m.card.equations =
      "phi(x) = m^-1/2 exp(x.w_r - |x|^2/2),  C_ij = exp(b[j - i + T - 1])\n"
      "out_i = sum_j C_ij (phi(q_i).phi(k_j)) v_j / sum_j C_ij (phi(q_i).phi(k_j))";
  m.card.patterns = "noncausal self, noncausal cross, causal self";
  m.card.state_size = "T H (m+V)";
  m.card.apply.inputs = {token("q", "B,T,H,D"), token("k", "B,S,H,D"), token("v", "B,S,H,V"),
                         gate("b", "H,T+S-1"), gate("w", "D,m")};
  m.card.apply.settings = {word_setting("map", {"nprf", "prf"}), flag_setting("causal", false)};
  m.card.apply.outputs = {output("out", "B,T,H,V")};
  m.card.apply.forms = {"parallel", "naive", "fft"};
  m.card.tests.keys = "S";
  m.card.tests.large = {{"D", 32}, {"V", 64}, {"m", 64}};
  m.card.tests.lengths = {1, 2, 37, 131};  // b of no query and no key would have -1 entries
  m.core = kernel_rpe_fft_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<KernelRpeLayer>(config); };
  m.card.tests.layer.options = R"({"length": 64, "features": 20})";
  registry.add(std::move(m));
}

}  // namespace heed::mixer
