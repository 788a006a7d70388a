// Gated DeltaProduct: n delta steps a token, so that a transition is a product of n
// Householder-like factors; the state decays once a token. Siems et al., "DeltaProduct", arXiv
// 2502.10297 (section 3).
#include <ATen/ATen.h>

#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// x [B,T,...] at step `place` of each token's n, `fill` in the others: [B,nT,...].
at::Tensor spread_steps(const at::Tensor& x, int64_t n, int64_t place) {
  at::Tensor zeros = at::zeros_like(x).unsqueeze(2);
  std::vector<at::Tensor> steps(static_cast<size_t>(n), zeros);
  steps[static_cast<size_t>(place)] = x.unsqueeze(2);
  return at::cat(steps, 2).flatten(1, 2);
}

// The delta steps are tokens of one longer gated delta rule: the first of a token's n decays, the
// last is read.
NamedTensors gated_deltaproduct_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), decay = call.get("log_decay");
  const int64_t n = std::max<int64_t>(call.size("T") > 0 ? call.size("n") : 1, 1);
  ScanParts parts;
  parts.q = spread_steps(q, n, n - 1);
  parts.scale = 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(q.size(3), 1)));
  if (decay.defined()) parts.in.log_decay = spread_steps(decay, n, 0);
  if (call.get("cu_seqlens").defined()) parts.in.cu_seqlens = call.get("cu_seqlens").mul(n);
  NamedTensors result = scan_core(call, parts);
  const at::Tensor out = result["out"];
  result["out"] = out.unflatten(1, {q.size(1), n}).select(2, n - 1);
  return result;
}

}  // namespace

void register_gated_deltaproduct(Registry& registry) {
  Mechanism m;
  m.card.id = "gated-deltaproduct";
  m.card.equations =
      "S_0' = a_t S_{t-1}\n"
      "S_i' = S_{i-1}' + beta_ti k_ti^T (v_ti - k_ti S_{i-1}'),  i = 1 .. n,  S_t = S_n'\n"
      "out_t = scale q_t S_t";
  set_scan_row(
      m.card,
      {gate("beta", "B,n T,H", Sample::kGate), gate("log_decay", "B,T,H", Sample::kLogDecay, true)},
      Sample::kUnit);
  for (TensorSpec& spec : m.card.apply.inputs) {
    if (spec.name == "k") spec.shape = "B,n T,H,K";
    if (spec.name == "v") spec.shape = "B,n T,H,V";
  }
  m.card.tests.sizes.emplace("n", 2);
  m.card.tests.tries = {{{}, {{"n", 3}}, {}}, {{}, {{"n", 1}}, {}}};
  m.traits = recurrent_traits(true);
  m.core = gated_deltaproduct_core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
