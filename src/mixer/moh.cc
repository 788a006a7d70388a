// Mixture of heads: softmax attention whose heads are weighed by a router, shared heads always,
// routed ones if they are among the token's best. Jin et al., "MoH: Multi-Head Attention as
// Mixture-of-Head Attention", arXiv 2410.11842 (eqs. 4-8), and its released code.
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/attend_core.h"
#include "mixer/common/attention_layer.h"
#include "mixer/common/dense_attention.h"

namespace heed::mixer {
namespace {

struct Gates {
  at::Tensor gates;    // [B,Tq,Hq]
  at::Tensor balance;  // [1], with routed heads that have logits
};

// 1 for the `count` largest of the last dimension (of equals the lower index), else 0.
at::Tensor best(const at::Tensor& x, int64_t count) {
  const at::Tensor order =
      std::get<1>(at::sort(x.detach(), std::optional<bool>(true), -1, true)).slice(-1, 0, count);
  return at::zeros_like(x.detach()).scatter(-1, order, 1.0);
}

int64_t read_topk(const CoreCall& call, int64_t routed, int64_t fallback) {
  const int64_t topk = call.settings.integer("topk", fallback);
  if (topk < 0 || topk > routed) {
    throw UsageError("topk={}: expected 0 to {}, the number of routed heads", topk, routed);
  }
  return topk;
}

// gate=norm: the heads whose queries are longest.
Gates norm_gates(const CoreCall& call, const at::Tensor& q) {
  for (const char* name : {"shared_logits", "routed_logits", "branch_logits"}) {
    if (call.get(name).defined()) throw UsageError("gate=norm takes no {}", name);
  }
  const int64_t heads = q.size(2), shared = call.settings.integer("shared", heads / 2);
  if (shared < 0 || shared > heads) {
    throw UsageError("shared={}: expected 0 to {}, the number of heads", shared, heads);
  }
  const at::Tensor gate_q = call.get("gate_q").defined() ? call.get("gate_q") : q;
  const at::Tensor lengths =
      gate_q.detach().to(dense_type(q)).norm(2, -1).slice(2, shared);  // [B,Tq,Hr]
  const int64_t topk = read_topk(call, heads - shared, std::min(heads / 4, heads - shared));
  const at::Tensor ones = at::ones({q.size(0), q.size(1), shared}, lengths.options());
  return {at::cat({ones, best(lengths, topk)}, 2), {}};
}

// Load balance: Hr sum_h (mean of R_h) (share of the tokens that select h).
at::Tensor balance(const at::Tensor& probability, const at::Tensor& selected) {
  if (probability.size(0) * probability.size(1) == 0) return probability.new_zeros({1});
  const at::Tensor mean = probability.flatten(0, 1).mean(0);
  const at::Tensor share = selected.flatten(0, 1).mean(0);
  return mean.mul(share).sum().mul(probability.size(2)).view({1});
}

// From logits [B,T,Hs], [B,T,Hr] and [B,T,2] in float32 or wider, each may be missing; not both of
// the first two.
Gates router_gates(const at::Tensor& shared, const at::Tensor& routed, const at::Tensor& branch,
                   int64_t topk, bool paper) {
  at::Tensor a1 = at::ones({1, 1, 1}, (shared.defined() ? shared : routed).options()), a2 = a1;
  if (branch.defined()) {
    const at::Tensor a = branch.softmax(-1).mul(paper ? 1.0 : 2.0);
    a1 = a.slice(2, 0, 1), a2 = a.slice(2, 1, 2);
  }
  Gates result;
  std::vector<at::Tensor> gates;
  if (shared.defined()) {
    const at::Tensor s = shared.softmax(-1);
    gates.push_back(a1.mul(paper ? s : s.mul(static_cast<double>(shared.size(2)))));
  }
  if (routed.defined()) {
    const at::Tensor r = routed.softmax(-1);
    const at::Tensor selected = best(r, topk), kept = r.mul(selected);
    at::Tensor gate = kept;
    if (!paper && topk > 0) {
      gate = kept.div(kept.sum(-1, true)).mul(static_cast<double>(topk));
    }
    gates.push_back(a2.mul(gate));
    result.balance = balance(r, selected);
  }
  result.gates = at::cat(gates, 2);
  return result;
}

Gates given_gates(const CoreCall& call, const at::Tensor& q, bool paper) {
  const auto wide = [&](const char* name) {
    const at::Tensor t = call.get(name);
    return t.defined() ? t.to(dense_type(q)) : t;
  };
  const at::Tensor shared = wide("shared_logits"), routed = wide("routed_logits");
  const at::Tensor branch = wide("branch_logits");
  const int64_t hs = shared.defined() ? shared.size(2) : 0;
  const int64_t hr = routed.defined() ? routed.size(2) : 0;
  if (hs + hr == 0 && !branch.defined()) {  // no router
    return {at::ones({q.size(0), q.size(1), q.size(2)}, q.options().dtype(dense_type(q))), {}};
  }
  if (hs + hr != q.size(2)) {
    throw UsageError("shared_logits has {} heads and routed_logits {}, expected {} together", hs,
                     hr, q.size(2));
  }
  if (branch.defined() != (shared.defined() && routed.defined())) {
    throw UsageError("branch_logits is needed exactly with shared_logits and routed_logits");
  }
  if (call.get("gate_q").defined()) throw UsageError("gate_q goes with gate=norm");
  return router_gates(shared, routed, branch, routed.defined() ? read_topk(call, hr, hr) : 0,
                      paper);
}

NamedTensors moh_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const std::string& gate = call.settings.word("gate");
  const Gates g = gate == "norm" ? norm_gates(call, q) : given_gates(call, q, gate == "paper");
  op::AttendOptions options;
  options.causal = call.settings.flag("causal");
  options.scale = call.settings.number("scale", 1 / std::sqrt(static_cast<double>(q.size(3))));
  at::Tensor o;
  if (call.form == "naive") {
    const at::Tensor visible = dense_visible(q.size(1), k.size(1), options.causal, q.device());
    o = dense_values(dense_softmax(dense_logits(q, k, *options.scale), visible).first, v);
  } else {
    o = std::get<0>(run_attend(call, options));
  }
  at::Tensor out = o.to(g.gates.scalar_type()).mul(g.gates.unsqueeze(3));
  if (const at::Tensor wo = call.get("wo"); wo.defined()) {
    out = at::einsum("bthd,hdc->btc", {out, wo.to(out.scalar_type())});
  }
  NamedTensors result = {{"out", out.to(v.scalar_type())}, {"gates", g.gates}};
  if (g.balance.defined()) result["balance"] = g.balance;
  return result;
}

// y = sum_h g_h o_h Wo_h with three routers of x, the loss "moh" by its side; or, with the gate
// "norm" (to convert a model), the heads with the longest queries before rotation, straight through
// to a softmax of those lengths.
class MohLayer final : public AttentionLayer {
 public:
  explicit MohLayer(const LayerConfig& config) : AttentionLayer("moh", config) {
    const int64_t heads = view().heads;
    gate_ = options_.word("gate", {"code", "paper", "norm"});
    const bool norm = gate_ == "norm";
    shared_ = options_.integer("shared", norm ? heads / 2 : std::max<int64_t>(heads / 4, 1), 0);
    if (shared_ > heads) {
      throw UsageError("mixer moh: {} of {} heads cannot be shared", shared_, heads);
    }
    const int64_t routed = heads - shared_,
                  active = norm ? heads / 4 : (3 * heads + 3) / 4 - shared_;
    topk_ = options_.integer("topk", std::clamp<int64_t>(active, routed > 0 ? 1 : 0, routed), 0);
    if (topk_ > routed) {
      throw UsageError("mixer moh: topk {} is more than the {} routed heads", topk_, routed);
    }
    if (norm && routed == 1) {
      throw UsageError("mixer moh: one routed head's length has no deviation; share all or fewer");
    }
    balance_ = options_.number("balance", 0.01, 0);
    options_.close();
    rewrites_heads_ = norm;
    if (norm) return;
    // A softmax over one head is 1 whatever its weights.
    if (shared_ > 1) params_.matrix(shared_router_, "shared_router.weight", shared_, config.hidden);
    if (routed > 0) params_.matrix(router_, "router.weight", routed, config.hidden);
    if (routed > 0 && shared_ > 0) {
      params_.matrix(branch_router_, "branch_router.weight", 2, config.hidden);
    }
  }

 protected:
  void before_rope(const at::Tensor& x, Heads& h) override {
    if (rewrites_heads_) h.extra = length_gates(h.q.to(at::kFloat).norm(2, -1));
  }

  at::Tensor after(const at::Tensor& x, const at::Tensor& o, const Heads& h) override {
    at::Tensor gates = h.extra;
    if (!gates.defined()) {
      const auto logits = [&](const Weight& w) {
        return w.defined() ? linear(x, w).to(at::kFloat) : at::Tensor();
      };
      at::Tensor shared = logits(shared_router_);
      if (shared_ == 1)
        shared = at::zeros({x.size(0), x.size(1), 1}, x.options().dtype(at::kFloat));
      const Gates g =
          router_gates(shared, logits(router_), logits(branch_router_), topk_, gate_ == "paper");
      if (h.call.aux && g.balance.defined()) {
        h.call.aux->add("moh", g.balance.squeeze(0).mul(balance_));
      }
      gates = g.gates.flatten(0, 1);
    }
    return o.mul(gates.unsqueeze(2).to(o.scalar_type()));
  }

 private:
  at::Tensor length_gates(const at::Tensor& lengths) const {
    const at::Tensor shared = at::ones_like(lengths.slice(1, 0, shared_));
    const at::Tensor routed = lengths.slice(1, shared_);
    if (routed.size(1) == 0) return shared;
    const at::Tensor selected = best(routed, topk_);
    if (!at::GradMode::is_enabled()) return at::cat({shared, selected}, 1);
    const at::Tensor p = routed.div(routed.std(-1, true, true)).softmax(-1);
    return at::cat({shared, selected.add(p.sub(p.detach()))}, 1);
  }

  std::string gate_;
  int64_t shared_, topk_;
  double balance_;
  Weight shared_router_, router_, branch_router_;
};

}  // namespace

void register_moh(Registry& registry) {
  Mechanism m;
  m.card.id = "moh";
  m.card.equations =
      "out_i,h = g_i,h softmax attention_i,h;  S, R = softmax of the logits over shared, routed "
      "heads\n"
      "paper: g = a1 S_h | a2 R_h in the top-K;  code: [a1,a2] doubled, a1 Hs S_h | a2 K R_h / sum "
      "R\n"
      "norm: g = 1 for shared heads and the K longest queries\n"
      "balance = Hr sum_h mean(R_h) mean(h selected);  without logits every gate is 1";
  m.card.patterns = "causal self, noncausal self, causal cross, noncausal cross";
  m.card.state_size = "Hk (D+Dv) Tk";
  m.card.state_note = "keys and values of all heads: a later token may select any";
  const char* routed = "gate=code|paper";
  m.card.apply.inputs = {token("q", "B,Tq,Hq,D"),
                         token("k", "B,Tk,Hk,D"),
                         token("v", "B,Tk,Hk,Dv"),
                         token("shared_logits", "B,Tq,Hs").maybe().only(routed),
                         token("routed_logits", "B,Tq,Hr").maybe().only(routed),
                         token("branch_logits", "B,Tq,2").maybe().only(routed),
                         token("gate_q", "B,Tq,Hq,D").maybe().only("gate=norm").constant(),
                         gate("wo", "Hq,Dv,C").maybe()};
  m.card.apply.settings = {word_setting("gate", {"code", "paper", "norm"}),
                           int_setting("topk", "Hr; norm: Hq div 4").trying({"2"}),
                           int_setting("shared", "norm: Hq div 2"), flag_setting("causal", false),
                           scale_setting("1/sqrt(D)")};
  m.card.apply.outputs = {output("out", "B,Tq,Hq,Dv|B,Tq,C"), output("gates", "B,Tq,Hq").constant(),
                          output("balance", "1").only("routed_logits").constant()};
  m.card.apply.forms = {"parallel", "naive", {"recurrent", "causal=true"}};
  TestCard& tests = m.card.tests;
  tests.queries = "Tq", tests.keys = "Tk";
  tests.heads = {};
  tests.batch = "";             // the balance is a mean over it
  tests.cuts = {0, 1, 16, 40};  // and over the tokens: none have no mean
  tests.sizes = {{"B", 2},  {"Hq", 4}, {"Hk", 2}, {"Hs", 1},
                 {"Hr", 3}, {"D", 9},  {"Dv", 6}, {"C", 5}};
  tests.large = {{"D", 64}, {"Dv", 64}};
  m.traits.heads_independent = false;
  m.core = moh_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<MohLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
