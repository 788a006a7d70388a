// Flow-Attention: queries are sinks and keys sources of a flow that is conserved; keys compete for
// what a source may give, sinks are allotted what comes in. Wu et al., "Flowformer: Linearizing
// Transformers with Conservation Flows", arXiv 2202.06258 (eqs. 4-8; the factors S and T/S, and the
// causal form, are those of the released code).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/pool_core.h"
#include "mixer/common/rows.h"
#include "op/attend_shape.h"

namespace heed::mixer {
namespace {

using at::Tensor;

// Everything in float32 (float64 if asked): small numbers are divided by each other.
struct Flow {
  Tensor f, g;  // sigmoid(q) [B,T,H,D], sigmoid(k) [B,S,H,D]
  double clamp, eps, outer_eps;

  // sum_m (a + eps)(b + eps) + outer_eps
  Tensor dot(const Tensor& a, const Tensor& b) const {
    return a.add(eps).mul(b.add(eps)).sum(-1).add(outer_eps);
  }
  Tensor clip(const Tensor& x) const { return x.clamp(-clamp, clamp); }
};

PoolRead noncausal(const Flow& x, const Tensor& v) {
  const auto sum = [](const Tensor& t) { return t.sum(1, true); };
  const double queries = static_cast<double>(x.f.size(1));
  const double keys = static_cast<double>(std::max<int64_t>(1, x.g.size(1)));
  const Tensor incoming = x.dot(x.f, sum(x.g)).reciprocal();  // I [B,T,H]
  const Tensor outgoing = x.dot(x.g, sum(x.f)).reciprocal();  // O [B,S,H]
  const Tensor allotted = x.dot(x.f, sum(x.g.mul(outgoing.unsqueeze(-1))));
  const Tensor competing = x.clip(x.dot(x.g, sum(x.f.mul(incoming.unsqueeze(-1)))));
  PoolRead read;
  read.x.q = x.f, read.x.k = x.g, read.x.v = v;
  read.x.key_weight = competing.softmax(1).mul(keys);
  read.x.row_scale = allotted.mul(queries / keys).sigmoid().mul(incoming);
  return read;
}

// The flow [Ns,H,4D+2] = [sum g, sum f, sum g O, sum f I, sum exp(Oh), t] of tokens [begin, end),
// started from row n; returns it at the end, and fills the weights and scales of the read.
Tensor one_piece(const Flow& x, const Tensor& flow, PoolRead* read) {
  const int64_t d = x.f.size(-1);
  const auto start = [&](int64_t i) { return flow.slice(-1, i * d, (i + 1) * d).unsqueeze(1); };
  const auto running = [](const Tensor& t, const Tensor& first) { return t.cumsum(1).add(first); };
  const Tensor t = at::arange(1, x.f.size(1) + 1, x.f.options())
                       .unsqueeze(-1)
                       .add(flow.select(-1, 4 * d + 1).unsqueeze(1));  // [B,T,H]
  const Tensor sum_g = running(x.g, start(0)), sum_f = running(x.f, start(1));
  const Tensor incoming = t.div(x.dot(x.f, sum_g)), outgoing = t.div(x.dot(x.g, sum_f));
  const Tensor sum_go = running(x.g.mul(outgoing.unsqueeze(-1)), start(2));
  const Tensor sum_fi = running(x.f.mul(incoming.unsqueeze(-1)), start(3));
  const Tensor allotted = x.dot(x.f, sum_go).div(t);
  const Tensor strength = x.clip(x.dot(x.g, sum_fi).div(t)).exp();
  const Tensor sum_strength = running(strength, flow.select(-1, 4 * d).unsqueeze(1));
  read->x.key_weight = t.mul(strength).div(sum_strength);
  read->x.row_scale = allotted.sigmoid().mul(incoming).div(t);
  if (x.f.size(1) == 0) return flow;
  const auto last = [](const Tensor& y) { return y.select(1, y.size(1) - 1); };
  return at::cat({last(sum_g), last(sum_f), last(sum_go), last(sum_fi),
                  last(sum_strength).unsqueeze(-1), last(t).unsqueeze(-1)},
                 -1);
}

// The same of all sequences: without a pack all rows of the batch are one piece.
Tensor causal(const Flow& x, const Tensor& pack, const Tensor& flow, PoolRead* read) {
  if (!pack.defined()) return one_piece(x, flow, read);
  const std::vector<int64_t> offset = op::read_offsets(pack, x.f.size(1), "cu_seqlens");
  std::vector<Tensor> weights = {x.g.sum(-1).slice(1, 0, 0)}, scales = weights, flows;
  for (size_t n = 0; n + 1 < offset.size(); ++n) {
    Flow part = x;
    part.f = x.f.slice(1, offset[n], offset[n + 1]);
    part.g = x.g.slice(1, offset[n], offset[n + 1]);
    const auto row = static_cast<int64_t>(n);
    flows.push_back(one_piece(part, flow.slice(0, row, row + 1), read));
    weights.push_back(read->x.key_weight);
    scales.push_back(read->x.row_scale);
  }
  read->x.key_weight = at::cat(weights, 1), read->x.row_scale = at::cat(scales, 1);
  return flows.empty() ? flow : at::cat(flows, 0);
}

NamedTensors flowformer_core(const CoreCall& call) {
  const Tensor v = call.get("v");
  const auto compute = v.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Flow x = {call.get("q").to(compute).sigmoid(), call.get("k").to(compute).sigmoid(),
                  call.settings.number("clamp", 1), call.settings.number("eps", 1e-6),
                  call.settings.number("outer_eps", 0)};
  if (!call.settings.flag("causal")) {
    return {{"out", pool_read(call, noncausal(x, v.to(compute))).to(v.scalar_type())}};
  }
  const Tensor pack = call.get("cu_seqlens");
  const int64_t sequences = pack.defined() ? pack.size(0) - 1 : x.f.size(0);
  Tensor flow = call.get("initial_flow");
  if (!flow.defined()) {
    flow = at::zeros({sequences, x.f.size(2), 4 * x.f.size(3) + 2}, x.f.options());
  }
  PoolRead read;
  read.x.q = x.f, read.x.k = x.g, read.x.v = v.to(compute);
  if (x.g.size(1) == x.f.size(1)) flow = causal(x, pack, flow.to(compute), &read);
  NamedTensors result = pool_scan(call, read);
  result["out"] = result["out"].to(v.scalar_type());
  result["final_flow"] = flow;
  return result;
}

// q, k, v and the output with biases, every pattern of the card.
class FlowformerLayer : public RecurrentLayer {
 public:
  explicit FlowformerLayer(const LayerConfig& config) : RecurrentLayer("flowformer") {
    LayerOptions options("flowformer", config);
    heads_ = options.heads();
    clamp_ = options.number("clamp", 5, 0);  // that of language models
    const int64_t key_dim = options.head_width("expand_k", 1.0);
    const int64_t value_dim = options.head_width("expand_v", 1.0);
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim, hv = heads_ * value_dim;
    projections(qkv_, hk, hk, hv, c, true);
    projection(out_, "o", c, hv, true);
    parts_.state = fixed("state", {1, heads_, key_dim, value_dim});
    flow_ = fixed("flow", {1, heads_, 4 * key_dim + 2});
  }

  Traits traits() const override { return recurrent_traits(false); }
  bool takes(Pattern pattern) const override { return pattern != Pattern::kCausalCross; }

 protected:
  Tensor mix(const Tensor& x, RecurrentPass& pass) override {
    Call& call = pass.call();
    const bool cross = call.pattern == Pattern::kNoncausalCross;
    if (cross && (!call.context.defined() || call.cu_seqlens.defined())) {
      throw UsageError("mixer flowformer: a cross pattern needs a context [B,S,C], and no pack");
    }
    const Tensor& from = cross ? call.context : x;
    const auto by_head = [&](const HeadTokens& to, const Tensor& in) {
      return pass.tokens(to, in, heads_).to(at::kFloat);
    };
    const Flow flow = {by_head(qkv_.q, x).sigmoid(), by_head(qkv_.k, from).sigmoid(), clamp_, 1e-6,
                       0};
    const Tensor v = by_head(qkv_.v, from);
    Tensor o;
    if (pass.causal()) {
      PoolRead read;
      read.x.q = flow.f, read.x.k = flow.g, read.x.v = v;
      const Tensor last = causal(flow, call.cu_seqlens, flows(pass, flow), &read);
      if (pass.decodes()) pass.state(flow_).copy_(last);
      o = pool_pass(pass, parts_, read);
    } else if (call.cu_seqlens.defined()) {
      std::vector<Tensor> parts;
      for (int64_t n = 0; n < pass.sequences(); ++n) {
        Flow own = flow;
        own.f = pass.sequence(flow.f, n), own.g = pass.sequence(flow.g, n);
        const PoolRead read = noncausal(own, pass.sequence(v, n));
        parts.push_back(op::pool(read.x, read.options));
      }
      o = pass.joined(parts, v);
    } else {
      o = pool_pass(pass, parts_, noncausal(flow, v));
    }
    return linear(o.flatten(2).to(x.scalar_type()), out_.weight, out_.bias);
  }

 private:
  Tensor flows(RecurrentPass& pass, const Flow& x) const {
    if (pass.decodes()) return pass.state(flow_);
    return at::zeros({pass.sequences(), heads_, 4 * x.f.size(3) + 2}, x.f.options());
  }

  int64_t heads_;
  double clamp_;
  QkvTokens qkv_;
  HeadTokens out_;
  PoolParts parts_;
  size_t flow_;
};

}  // namespace

void register_flowformer(Registry& registry) {
  Mechanism m;
  m.card.id = "flowformer";
  m.card.equations =
      "f = sigmoid(q), g = sigmoid(k), dot(a,b) = sum_m (a_m+eps)(b_m+eps) + outer_eps\n"
      "I_i = 1/dot(f_i, sum g), O_j = 1/dot(g_j, sum f), Ih_i = dot(f_i, sum g O)\n"
      "w_j = S softmax_j(clip dot(g_j, sum f I))\n"
      "out_i = sigmoid(Ih_i T/S) I_i f_i . sum_j w_j g_j v_j^T\n"
      "causal: all sums up to t, I_t and O_t times t, Ih_t and dot(g_t, sum f I) over t,\n"
      "w_t = t exp(Oh_t) / sum exp(Oh), out_t = sigmoid(Ih_t) (I_t/t) f_t . sum w g v^T";
  m.card.state_size = "H (D V+4 D+2)";
  ApplyRow& row = m.card.apply;
  set_pool_row(m.card, "noncausal self, noncausal cross, causal self", {{"D", 5}, {"V", 4}},
               {{"D", 32}, {"V", 64}});
  add_pool_states(m.card, "D", {});
  const TensorSpec flow = gate("initial_flow", "Ns,H,4 D+2", Sample::kGate);
  row.inputs.push_back(flow.together("initial").only("causal=true"));
  row.inputs.push_back(offsets().only("causal=true"));
  row.outputs.push_back(output("final_flow", "Ns,H,4 D+2").only("causal=true"));
  row.settings = {flag_setting("causal", false), number_setting("clamp", "1").trying({"5"}),
                  number_setting("eps", "1e-6"), number_setting("outer_eps", "0").trying({"1e-6"})};
  m.traits = {.state = StateGrowth::kFixed, .linear_time = true};
  m.core = flowformer_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<FlowformerLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
