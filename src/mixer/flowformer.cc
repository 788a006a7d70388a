// Flow-Attention: queries are sinks and keys sources of a flow that is conserved; keys compete for
// what a source may give, sinks are allotted what comes in. Wu et al., "Flowformer: Linearizing
// Transformers with Conservation Flows", arXiv 2202.06258 (eqs. 4-8; the factors S and T/S, and the
// causal form, are those of the released code).
#include <ATen/ATen.h>

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
Tensor causal(const Flow& x, const Tensor& flow, PoolRead* read) {
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
  std::vector<int64_t> offset = {0, x.f.size(1)};
  if (pack.defined()) offset = op::read_offsets(pack, x.f.size(1), "cu_seqlens");
  const int64_t sequences = pack.defined() ? static_cast<int64_t>(offset.size()) - 1 : x.f.size(0);
  Tensor flow = call.get("initial_flow");
  if (!flow.defined()) {
    flow = at::zeros({sequences, x.f.size(2), 4 * x.f.size(3) + 2}, x.f.options());
  }
  PoolRead read;
  read.x.q = x.f, read.x.k = x.g, read.x.v = v.to(compute);
  // Without a pack all rows of the batch are one piece.
  std::vector<Tensor> weights = {x.g.sum(-1).slice(1, 0, 0)}, scales = weights, flows;
  for (size_t n = 0; n + 1 < offset.size() && x.g.size(1) == x.f.size(1); ++n) {
    Flow part = x;
    part.f = x.f.slice(1, offset[n], offset[n + 1]);
    part.g = x.g.slice(1, offset[n], offset[n + 1]);
    const auto row = static_cast<int64_t>(n);
    const Tensor start = pack.defined() ? flow.slice(0, row, row + 1) : flow;
    flows.push_back(causal(part, start.to(compute), &read));
    weights.push_back(read.x.key_weight);
    scales.push_back(read.x.row_scale);
  }
  read.x.key_weight = at::cat(weights, 1), read.x.row_scale = at::cat(scales, 1);
  NamedTensors result = pool_scan(call, read);
  result["out"] = result["out"].to(v.scalar_type());
  result["final_flow"] = flows.empty() ? flow : at::cat(flows, 0);
  return result;
}

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
  m.card.patterns = "noncausal self, noncausal cross, causal self";
  m.card.state_size = "H (D V+4 D+2)";
  ApplyRow& row = m.card.apply;
  row.inputs = {
      token("q", "B,T,H,D"),
      token("k", "B,S,H,D"),
      token("v", "B,S,H,V"),
      gate("initial_state", "Ns,H,D,V").together("initial").only("causal=true"),
      gate("initial_flow", "Ns,H,4 D+2", Sample::kGate).together("initial").only("causal=true"),
      offsets().only("causal=true")};
  row.settings = {flag_setting("causal", false), number_setting("clamp", "1").trying({"5"}),
                  number_setting("eps", "1e-6"), number_setting("outer_eps", "0").trying({"1e-6"})};
  row.outputs = {output("out", "B,T,H,V"), output("final_state", "Ns,H,D,V").only("causal=true"),
                 output("final_flow", "Ns,H,4 D+2").only("causal=true")};
  row.forms = {{"chunked", "causal=true"},
               {"parallel", "causal=false"},
               "naive",
               {"recurrent", "causal=true"}};
  TestCard& tests = m.card.tests;
  tests.keys = "S";
  tests.sizes = {{"D", 5}, {"V", 4}};
  tests.large = {{"D", 32}, {"V", 64}};
  m.traits = {.state = StateGrowth::kFixed, .linear_time = true};
  m.core = flowformer_core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
