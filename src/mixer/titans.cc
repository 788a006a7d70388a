// Titans' long-term memory: a linear map that learns by gradient descent with momentum and
// forgetting while it is read. Behrouz et al., "Titans: Learning to Memorize at Test Time", arXiv
// 2501.00663 (eqs. 8-14, section 3.2 for chunks: gradients are taken at the chunk's start).
#include <ATen/ATen.h>

#include "mixer/common/rows.h"
#include "mixer/registry.h"
#include "op/learn.h"

namespace heed::mixer {
namespace {

using at::Tensor;

// One decode step after another.
NamedTensors decode(op::LearnTensors x, const op::LearnOptions& options) {
  const int64_t batch = x.q.size(0), heads = x.q.size(2), keys = x.k.size(3), values = x.v.size(3);
  const auto state = [&](const Tensor& given) {
    if (given.defined()) return given.to(at::kFloat).clone(at::MemoryFormat::Contiguous);
    return at::zeros({batch, heads, keys, values}, x.q.options().dtype(at::kFloat));
  };
  const Tensor memory = state(x.initial_state), momentum = state(x.initial_momentum);
  const Tensor running = memory.clone();
  const Tensor position = at::zeros({batch}, memory.options());
  std::vector<Tensor> outs = {x.v.slice(1, 0, 0)};
  for (int64_t t = 0; t < x.q.size(1); ++t) {
    op::LearnTensors step = x;
    for (Tensor* row : {&step.q, &step.k, &step.v, &step.alpha, &step.eta, &step.theta}) {
      *row = row->slice(1, t, t + 1);
    }
    step.initial_state = memory, step.initial_momentum = momentum;
    step.initial_running = running, step.initial_position = position;
    op::learn_step(step, options);
    outs.push_back(step.out);
  }
  return {{"out", at::cat(outs, 1)}, {"final_state", running}, {"final_momentum", momentum}};
}

NamedTensors titans_core(const CoreCall& call) {
  op::LearnTensors x;
  x.q = call.get("q"), x.k = call.get("k"), x.v = call.get("v");
  x.alpha = call.get("alpha"), x.eta = call.get("eta"), x.theta = call.get("theta");
  x.initial_state = call.get("initial_state");
  x.initial_momentum = call.get("initial_momentum");
  op::LearnOptions options;
  options.scale = call.settings.number("scale", 1);
  options.chunk = call.settings.integer("chunk");
  if (call.form == "recurrent") return decode(x, options);
  if (call.form == "naive") {
    op::learn_naive(x, options);
  } else {
    op::learn(x, options);
  }
  return {{"out", x.out}, {"final_state", x.final_state}, {"final_momentum", x.final_momentum}};
}

}  // namespace

void register_titans(Registry& registry) {
  Mechanism m;
  m.card.id = "titans";
  m.card.equations =
      "G_t = 2 k_t^T (k_t M* - v_t),  M* the memory at the start of the chunk\n"
      "Z_t = eta_t Z_{t-1} - theta_t G_t,  M_t = (1 - alpha_t) M_{t-1} + Z_t\n"
      "out_t = scale q_t M_t";
  m.card.patterns = "causal self";
  m.card.state_size = "2 H K V";
  m.card.state_note = "and with chunk > 1 the memory of the open chunk";
  ApplyRow& row = m.card.apply;
  row.inputs = {token("q", "B,T,H,K"),
                token("k", "B,T,H,K", Sample::kUnit),
                token("v", "B,T,H,V"),
                gate("alpha", "B,T,H", Sample::kGate),
                gate("eta", "B,T,H", Sample::kGate),
                gate("theta", "B,T,H", Sample::kStep),
                initial_state(),
                gate("initial_momentum", "Ns,H,K,V").maybe()};
  row.settings = {chunk_setting("1"), scale_setting("1")};
  row.outputs = {output("out", "B,T,H,V"), output("final_state", "Ns,H,K,V"),
                 output("final_momentum", "Ns,H,K,V")};
  row.forms = {"chunked", "naive", "recurrent"};
  TestCard& tests = m.card.tests;
  tests.sizes = {{"K", 7}, {"V", 5}};
  tests.large = {{"K", 64}, {"V", 64}};
  tests.cuts = {0, 16, 32, 41};  // where a chunk ends, of 1 or of 16 tokens
  m.traits.state = StateGrowth::kFixed;
  m.traits.linear_time = true;
  m.traits.chunk_matters = true;
  m.core = titans_core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
