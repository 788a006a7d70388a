// Kolmogorov-Arnold attention: a learned function of every logit, a Fourier series by head, rank
// and key, in place of the softmax. Maity et al., "Kolmogorov-Arnold Attention: Is Learnable
// Attention Better For Vision Transformers?", arXiv 2503.10632. No variant of `attend`: the sums of
// the functions over the keys come before the values.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <fmt/format.h>

#include "io/error.h"
#include "mixer/common/core_layer.h"
#include "mixer/common/dense_attention.h"
#include "mixer/common/rows.h"

namespace heed::mixer {
namespace {

at::Tensor base_of(const at::Tensor& e, const std::string& base) {
  if (base == "silu") return at::silu(e);
  return base == "identity" ? e : at::zeros_like(e);
}

// u_i[a] = sum_j base(e) + sum_m (a_m cos(m e) + b_m sin(m e)): every term by itself, [B,H,Tq,r].
at::Tensor sums_naive(const at::Tensor& e, const at::Tensor& a, const at::Tensor& b,
                      const std::string& base) {
  std::vector<at::Tensor> sums;
  for (int64_t rank = 0; rank < a.size(1); ++rank) {
    at::Tensor phi = base_of(e, base);
    for (int64_t m = 1; m <= a.size(3); ++m) {
      const auto term = [&](const at::Tensor& x) {
        return x.select(1, rank).select(2, m - 1).unsqueeze(1);  // [H,1,Tk]
      };
      const at::Tensor angle = e.mul(static_cast<double>(m));
      phi = phi.add(term(a).mul(at::cos(angle))).add(term(b).mul(at::sin(angle)));
    }
    sums.push_back(phi.sum(-1));
  }
  return at::stack(sums, -1);
}

// The same a run of queries at a time: every harmonic is two products with [Tk,r] matrices, and
// follows from the one before by a rotation.
at::Tensor sums_tiled(const at::Tensor& e, const at::Tensor& a, const at::Tensor& b,
                      const std::string& base) {
  const at::Tensor c1 = at::cos(e), s1 = at::sin(e);
  at::Tensor c = c1, s = s1;
  at::Tensor u = base_of(e, base).sum(-1, true);
  for (int64_t m = 0; m < a.size(3); ++m) {
    const auto weights = [m](const at::Tensor& x) { return x.select(3, m).transpose(1, 2); };
    u = u.add(at::matmul(c, weights(a))).add(at::matmul(s, weights(b)));
    if (m + 1 == a.size(3)) break;
    const at::Tensor next = c.mul(c1).sub(s.mul(s1));
    s = s.mul(c1).add(c.mul(s1));
    c = next;
  }
  return u;
}

// The same without a gradient, by all threads: each takes a run of queries of one head with a block
// of keys at a time, whose logits and harmonics stay in its second cache. q [B,H,Tq,D] scaled, k
// [B,H,Tk,D].
at::Tensor sums_in_blocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& a,
                          const at::Tensor& b, const std::string& base) {
  constexpr int64_t kQueries = 32, kKeys = 512;
  const int64_t heads = q.size(1), queries = q.size(2), keys = k.size(2);
  const int64_t runs = (queries + kQueries - 1) / kQueries;
  at::Tensor u = at::zeros({q.size(0), heads, queries, a.size(1)}, q.options());
  at::parallel_for(0, q.size(0) * heads * runs, 1, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / runs / heads, h = task / runs % heads;
      const int64_t first = task % runs * kQueries, rows = std::min(kQueries, queries - first);
      const at::Tensor run = q[n][h].narrow(0, first, rows), out = u[n][h].narrow(0, first, rows);
      for (int64_t from = 0; from < keys; from += kKeys) {
        const int64_t count = std::min(kKeys, keys - from);
        const at::Tensor e = at::mm(run, k[n][h].narrow(0, from, count).t());
        if (base != "zero") out.add_(base_of(e, base).sum(-1, true));
        const at::Tensor c1 = at::cos(e), s1 = at::sin(e);
        at::Tensor c = c1.clone();
        const at::Tensor s = s1.clone();
        for (int64_t m = 0; m < a.size(3); ++m) {
          const auto weights = [&](const at::Tensor& x) {
            return x[h].narrow(1, from, count).select(2, m).t();
          };
          out.addmm_(c, weights(a)).addmm_(s, weights(b));
          if (m + 1 == a.size(3)) break;
          const at::Tensor next = c.mul(c1).addcmul_(s, s1, -1);
          s.mul_(c1).addcmul_(c, s1);
          c = next;
        }
      }
    }
  });
  return u;
}

NamedTensors karat_core(const CoreCall& call) {
  constexpr int64_t kRun = 32;  // queries whose logits stay in the caches
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const at::ScalarType wide = dense_type(q);
  const at::Tensor a = call.get("a").to(wide), b = call.get("b").to(wide);
  const double scale = call.settings.number("scale", 1 / std::sqrt(static_cast<double>(q.size(3))));
  const std::string& base = call.settings.word("base");
  at::Tensor u;
  if (call.form == "naive" || q.size(1) == 0) {
    u = sums_naive(dense_logits(q, k, scale), a, b, base);
  } else if (q.is_cpu() && !at::GradMode::is_enabled()) {
    u = sums_in_blocks(q.to(wide).mul(scale).transpose(1, 2), k.to(wide).transpose(1, 2), a, b,
                       base);
  } else {
    std::vector<at::Tensor> runs;
    for (int64_t begin = 0; begin < q.size(1); begin += kRun) {
      const at::Tensor run = q.slice(1, begin, std::min(begin + kRun, q.size(1)));
      runs.push_back(sums_tiled(dense_logits(run, k, scale), a, b, base));
    }
    u = at::cat(runs, 2);
  }
  // [H,r,Tk] x [B,H,Tk,Dv] -> [B,H,r,Dv]
  const at::Tensor mixed =
      at::matmul(call.get("w").to(wide).transpose(1, 2), v.to(wide).transpose(1, 2));
  return {{"out", at::matmul(u, mixed).transpose(1, 2).to(v.scalar_type())}};
}

// An operator for every head over a fixed number of tokens: the layer's own ("blockwise"), or that
// of the earlier layer which `universal` names, shared by all layers that name it ("universal").
// Coefficients are drawn so that sums over the keys, and then their mixture of values, keep their
// size.
class KaratLayer final : public CoreLayer {
 public:
  explicit KaratLayer(const LayerConfig& config)
      : CoreLayer("karat", config, kRotation | kKeySet | kWindow | kAllHeads, {"base"}) {
    if (!options_.has("tokens")) {
      throw UsageError(
          "mixer karat: option tokens is missing, the number of tokens it is made for");
    }
    tokens_ = options_.integer("tokens", 0);
    const int64_t rank = options_.integer("rank", 12), harmonics = options_.integer("harmonics", 3);
    owner_ = options_.integer("universal", config.layer, 0);
    options_.describe("universal", "a layer from 0 to itself, whose coefficients it reads",
                      "its own");
    options_.close();
    if (owner_ > config.layer) {
      throw UsageError("mixer karat: option universal is {}, expected a layer up to its own, {}",
                       owner_, config.layer);
    }
    owns_ = owner_ == config.layer;
    if (!owns_) return;
    const auto normal = [&](at::IntArrayRef shape, int64_t terms) {
      return at::empty(shape, init_options()).normal_(0, 1 / std::sqrt(static_cast<double>(terms)));
    };
    const int64_t heads = view().heads;
    params_.tensor(a_, "a", normal({heads, rank, tokens_, harmonics}, tokens_ * harmonics));
    params_.tensor(b_, "b", normal({heads, rank, tokens_, harmonics}, tokens_ * harmonics));
    params_.tensor(w_, "w", normal({heads, tokens_, rank}, tokens_ * rank));
  }
  bool takes(Pattern pattern) const override { return pattern == Pattern::kNoncausalSelf; }

 protected:
  void more_inputs(const Heads& h, const Sequences& part, CoreCall& call) override {
    if (part.length != tokens_) {
      throw UsageError("mixer karat: made for {} tokens, the sequence has {}", tokens_,
                       part.length);
    }
    const std::pair<const char*, at::Tensor> own[] = {{"a", a_}, {"b", b_}, {"w", w_}};
    for (const auto& [name, t] : own) {
      const std::string key = fmt::format("karat.{}.{}", owner_, name);
      Shared* const shared = h.call.shared;
      if (owns_) {
        if (shared != nullptr) shared->insert_or_assign(key, t);
        call.in[name] = t;
        continue;
      }
      const bool there = shared != nullptr && shared->count(key) > 0;
      const at::Tensor other = there ? shared->at(key) : at::Tensor();
      const int64_t keys = there ? other.size(name[0] == 'w' ? 1 : 2) : 0;
      if (keys != tokens_ || other.size(0) != view().heads) {
        throw UsageError(
            "mixer karat: layer {}, which option universal names, has no coefficients for {} heads "
            "and {} tokens",
            owner_, view().heads, tokens_);
      }
      call.in[name] = other;
    }
  }

 private:
  int64_t tokens_, owner_;
  bool owns_ = true;
  at::Tensor a_, b_, w_;
};

}  // namespace

void register_karat(Registry& registry) {
  Mechanism m;
  m.card.id = "karat";
  m.card.equations =
      "e_ij = scale q_i.k_j,  phi_haj(e) = base(e) + sum_m (a[h,a,j,m] cos(m e) + b[h,a,j,m] sin(m "
      "e))\n"
      "u_i[a] = sum_j phi_haj(e_ij),  out_i = sum_a u_i[a] sum_j w[h,j,a] v_j";
  m.card.patterns = "noncausal self, noncausal cross";
  m.card.state_size = "0";
  m.card.apply.inputs = {token("q", "B,Tq,H,D"), token("k", "B,Tk,H,D"), token("v", "B,Tk,H,Dv"),
                         gate("a", "H,r,Tk,G"),  gate("b", "H,r,Tk,G"),  gate("w", "H,Tk,r")};
  m.card.apply.settings = {word_setting("base", {"zero", "silu", "identity"}),
                           scale_setting("1/sqrt(D)")};
  m.card.apply.outputs = {output("out", "B,Tq,H,Dv")};
  m.card.apply.forms = {"parallel", "naive"};
  m.traits.causality = Causality::kNone;
  TestCard& tests = m.card.tests;
  tests.queries = "Tq", tests.keys = "Tk";
  tests.sizes = {{"r", 2}, {"G", 4}, {"D", 9}, {"Dv", 6}};
  tests.large = {{"D", 64}, {"Dv", 64}};
  tests.layer = {R"({"tokens": 24, "rank": 2, "harmonics": 2})", "", {24}};
  m.core = karat_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<KaratLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
