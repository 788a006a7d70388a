// Based: linear attention with the second-order Taylor features of the exponential. Arora et al.,
// "Simple linear attention language models balance the recall-throughput tradeoff", arXiv
// 2402.18668 (section 4.1).
#include <ATen/ATen.h>

#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// [1; x s; x_a x_b s^2/sqrt 2] with s^2 = scale, pairs row by row: f(q).f(k) = 1 + u + u^2/2 with
// u = scale q.k.
at::Tensor features(const at::Tensor& x, double scale) {
  const at::Tensor y = x.mul(std::sqrt(scale));
  const at::Tensor pairs = y.unsqueeze(-1).mul(y.unsqueeze(-2)).flatten(-2).mul(std::sqrt(0.5));
  return at::cat({at::ones_like(y.slice(-1, 0, 1)), y, pairs}, -1);
}

// Weights 1 + u + u^2/2 over the keys that are seen.
at::Tensor naive_sums(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                      bool causal) {
  const at::Tensor u = at::matmul(q.permute({0, 2, 1, 3}), k.permute({0, 2, 3, 1})).mul(scale);
  at::Tensor weights = u.square().mul(0.5).add(u).add(1.0);
  if (causal) weights = weights.tril();
  return at::matmul(weights, v.transpose(1, 2)).transpose(1, 2);
}

// sum_j f(k_j) v_j^T of one sequence: [B,H,M,V].
at::Tensor summed(const at::Tensor& f, const at::Tensor& v) {
  return at::matmul(f.permute({0, 2, 3, 1}), v.transpose(1, 2));
}

NamedTensors based_core(const CoreCall& call) {
  const bool causal = call.settings.flag("causal");
  const at::ScalarType type = call.get("v").scalar_type();
  const at::ScalarType compute = type == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor q = call.get("q").to(compute), k = call.get("k").to(compute);
  const at::Tensor v = with_ones(call.get("v").to(compute));
  const double width = static_cast<double>(std::max<int64_t>(q.size(3), 1));
  const double scale = call.settings.number("scale", 1.0 / std::sqrt(width));
  at::Tensor initial = call.get("initial_state");
  if (initial.defined()) {
    initial = at::cat({initial, call.get("initial_z").unsqueeze(-1)}, -1).to(compute);
  }
  at::Tensor sums, state;
  const at::Tensor offsets = call.get("cu_seqlens");
  if (call.form == "naive" && !offsets.defined()) {
    sums = naive_sums(q, k, v, scale, causal);
    const at::Tensor f = features(q, scale);
    if (causal) {
      state = summed(features(k, scale), v);
      if (initial.defined()) {
        sums = sums.add(at::matmul(f.transpose(1, 2), initial).transpose(1, 2));
        state = state.add(initial);
      }
    }
  } else if (causal) {
    op::ScanInputs in;
    in.initial_state = initial;
    in.cu_seqlens = offsets;
    op::ScanOptions options;
    options.chunk = call.settings.integer("chunk");
    std::tie(sums, state) =
        run_scan(call.form, features(q, scale), features(k, scale), v, in, options);
  } else {
    const at::Tensor all = summed(features(k, scale), v);
    sums = at::matmul(features(q, scale).transpose(1, 2), all).transpose(1, 2);
  }
  const int64_t value_dim = v.size(3) - 1;
  const at::Tensor divisor = sums.slice(-1, value_dim).add(call.settings.number("eps", 1e-12));
  NamedTensors result = {{"out", sums.slice(-1, 0, value_dim).div(divisor).to(type)}};
  if (causal) {
    result["final_state"] = state.slice(-1, 0, value_dim);
    result["final_z"] = state.select(-1, value_dim);
  }
  return result;
}

}  // namespace

void register_based(Registry& registry) {
  Mechanism m;
  m.card.id = "based";
  m.card.equations =
      "f(x) = [1; x s; x_a x_b s^2/sqrt 2],  s = sqrt(scale)\n"
      "out_i = sum_j (f(q_i).f(k_j)) v_j / (sum_j f(q_i).f(k_j) + eps)\n"
      "causal: S_t = S_{t-1} + f(k_t)^T v_t,  z_t = z_{t-1} + f(k_t)";
  m.card.patterns = "causal self, noncausal self, noncausal cross";
  m.card.state_size = "H (1+D+D^2) (V+1)";
  ApplyRow& row = m.card.apply;
  row.inputs = {
      token("q", "B,T,H,D"),
      token("k", "B,S,H,D"),
      token("v", "B,S,H,V"),
      gate("initial_state", "Ns,H,1+D+D^2,V").together("initial").only("causal=true"),
      gate("initial_z", "Ns,H,1+D+D^2", Sample::kGate).together("initial").only("causal=true"),
      offsets().only("causal=true")};
  row.settings = {flag_setting("causal", true), scale_setting("D^-0.5"),
                  number_setting("eps", "1e-12"), chunk_setting()};
  row.outputs = {output("out", "B,T,H,V"),
                 output("final_state", "Ns,H,1+D+D^2,V").only("causal=true"),
                 output("final_z", "Ns,H,1+D+D^2").only("causal=true")};
  row.forms = {{"chunked", "causal=true"},
               {"parallel", "causal=false"},
               "naive",
               {"recurrent", "causal=true"}};
  m.card.tests.keys = "S";
  m.card.tests.sizes = {{"D", 4}, {"V", 5}};
  m.card.tests.large = {{"D", 16}, {"V", 64}};
  m.traits = recurrent_traits(false);
  m.core = based_core;
  // A sum of features: its count outweighs the linear part, so that no divisor is near 0.
  m.fit_inputs = [](NamedTensors& in, const Settings&) {
    const auto z = in.find("initial_z");
    if (z == in.end()) return;
    at::Tensor count = at::zeros_like(z->second);
    count.select(-1, 0).fill_(3.0);
    z->second = z->second.mul(0.2).add(count);
  };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
