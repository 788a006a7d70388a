// Aaren: softmax attention with one learned query per head, computed for all prefixes by a scan of
// (m, u, w). Feng et al., "Attention as an RNN", arXiv 2405.13956 (section 3.2).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"
#include "op/ewscan.h"

namespace heed::mixer {
namespace {

using Lse = op::LseTensors;

// scale q.k_t: q [H,K], k [B,T,H,K] -> [B,T,H].
at::Tensor scores(const at::Tensor& q, const at::Tensor& k, double scale) {
  return at::einsum("bthk,hk->bth", {k, q}).mul(scale);
}

NamedTensors aaren_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k");
  const at::ScalarType type = k.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const double scale = scan_options(call, q).scale;
  Lse x;
  x.score = scores(q.to(type), k.to(type), scale);
  x.v = call.get("v");
  x.initial_m = call.get("initial_m");
  x.initial_u = call.get("initial_u");
  x.initial_w = call.get("initial_w");
  x = call.form == "naive"       ? op::lse_scan_naive(x)
      : call.form == "recurrent" ? op::lse_scan_steps(x)
                                 : op::lse_scan(x);
  return {{"out", x.out}, {"final_m", x.final_m}, {"final_u", x.final_u}, {"final_w", x.final_w}};
}

// y = o Wo, the query e Wq of a learned vector e being the same for every position. Not causal: all
// tokens read what the last one would.
class AarenLayer : public RecurrentLayer {
 public:
  explicit AarenLayer(const LayerConfig& config) : RecurrentLayer("aaren") {
    LayerOptions options("aaren", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 1.0);
    const int64_t value_dim = options.head_width("expand_v", 1.0);
    options.close();
    const int64_t c = options.hidden();
    params_.tensor(query_, "query", at::empty({c}, init_options()).normal_());
    params_.matrix(to_query_, "q_proj.weight", heads_ * key_dim, c);
    projection(k_, "k", heads_ * key_dim, c);
    projection(v_, "v", heads_ * value_dim, c);
    params_.matrix(out_, "o_proj.weight", c, heads_ * value_dim);
    largest_ = fixed("m", {1, heads_});
    sum_ = fixed("u", {1, heads_, value_dim});
    weight_ = fixed("w", {1, heads_});
    token_flops_ = 2 * heads_ * (key_dim + 2 * value_dim);
    scale_ = 1.0 / std::sqrt(static_cast<double>(key_dim));
  }

  Traits traits() const override { return recurrent_traits(false); }
  bool takes(Pattern pattern) const override {
    return pattern == Pattern::kCausalSelf || pattern == Pattern::kNoncausalSelf;
  }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const at::Tensor q = linear(query_.unsqueeze(0), to_query_).view({heads_, -1}).to(at::kFloat);
    const at::Tensor k = pass.tokens(k_, x, heads_).to(at::kFloat);
    Lse t;
    t.score = scores(q, k, scale_);
    t.v = pass.tokens(v_, x, heads_);
    if (pass.decodes()) {
      const double inf = std::numeric_limits<double>::infinity();
      pass.begin(largest_, at::full({1, heads_}, -inf, t.score.options()));
    }
    at::Tensor o = pass.advance<Lse>(
        t,
        {{largest_, &Lse::initial_m, &Lse::final_m},
         {sum_, &Lse::initial_u, &Lse::final_u},
         {weight_, &Lse::initial_w, &Lse::final_w}},
        [](Lse& y, const at::Tensor& pack) { y = op::lse_scan(y, pack); },
        [](Lse& y) { y.out = op::lse_scan_step(y); });
    if (!pass.causal()) {
      std::vector<at::Tensor> read;
      for (int64_t n = 0; n < pass.sequences(); ++n) {
        const at::Tensor own = pass.sequence(o, n);
        read.push_back(own.slice(1, std::max<int64_t>(own.size(1) - 1, 0)).expand_as(own));
      }
      o = pass.joined(read, o);
    }
    return linear(o.flatten(2), out_);
  }

 private:
  int64_t heads_;
  double scale_;
  at::Tensor query_;
  HeadTokens k_, v_;
  Weight to_query_, out_;
  size_t largest_, sum_, weight_;
};

}  // namespace

void register_aaren(Registry& registry) {
  Mechanism m;
  m.card.id = "aaren";
  m.card.equations =
      "s_t = scale q.k_t\nm_t = max(m_{t-1}, s_t)\nu_t = e^{m_{t-1}-m_t} u_{t-1} + e^{s_t-m_t} "
      "v_t\n"
      "w_t = e^{m_{t-1}-m_t} w_{t-1} + e^{s_t-m_t}\nout_t = u_t / w_t";
  m.card.state_size = "H (V+2)";
  m.card.apply.inputs = {token("q", "H,K"),
                         token("k", "B,T,H,K"),
                         token("v", "B,T,H,V"),
                         gate("initial_m", "B,H").together("state"),
                         gate("initial_u", "B,H,V").together("state"),
                         gate("initial_w", "B,H", Sample::kStep).together("state")};
  m.card.apply.settings = {scale_setting(), chunk_setting()};
  m.card.apply.outputs = {output("out", "B,T,H,V"), output("final_m", "B,H"),
                          output("final_u", "B,H,V"), output("final_w", "B,H")};
  m.card.apply.forms = {"chunked", "naive", "recurrent"};
  m.traits = recurrent_traits(false);
  m.card.tests.large = {{"K", 64}, {"V", 64}};
  m.core = aaren_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<AarenLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
