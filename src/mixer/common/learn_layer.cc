// See learn_layer.h.
#include "mixer/common/learn_layer.h"

#include <ATen/ATen.h>

#include "mixer/common/rows.h"

namespace heed::mixer {

using X = op::LearnTensors;

void set_learn_card(Mechanism& m, const std::string& value_dim,
                    const std::vector<std::pair<std::string, std::string>>& states, Sizes sizes) {
  m.card.patterns = "causal self";
  m.card.apply.outputs = {output("out", "B,T,H," + value_dim)};
  for (const auto& [name, shape] : states) {
    m.card.apply.inputs.push_back(gate("initial_" + name, shape).maybe());
    m.card.apply.outputs.push_back(output("final_" + name, shape));
  }
  TestCard& tests = m.card.tests;
  tests.large.clear();
  for (const auto& [name, size] : sizes) tests.large[name] = 64;
  tests.sizes = std::move(sizes);
  tests.cuts = {0, 16, 32, 41};  // where a chunk ends, of 1 or of 16 tokens
  m.traits.state = StateGrowth::kFixed;
  m.traits.linear_time = true;
  m.traits.chunk_matters = true;
}

void run_learn(const std::string& form, X& x, const op::LearnOptions& options) {
  if (form == "naive") {
    op::learn_naive(x, options);
  } else {
    op::learn(x, options);
  }
}

Traits LearnLayer::traits() const {
  Traits traits = recurrent_traits(false);
  traits.chunk_matters = true;
  return traits;
}

void LearnLayer::memory(int64_t heads, int64_t key_dim, int64_t value_dim, bool momentum) {
  const auto normal = [&](at::IntArrayRef sizes, double deviation) {
    return at::empty(sizes, init_options()).normal_(0, deviation);
  };
  momentum_ = momentum;
  params_.tensor(start_, "memory", normal({heads, key_dim, value_dim}, 0.02));
  const std::vector<int64_t> matrix = {1, heads, key_dim, value_dim},
                             vector = {1, heads, value_dim};
  memory_part_ = fixed("memory", matrix);
  if (momentum) momentum_part_ = fixed("momentum", matrix);
  running_ = fixed("running", matrix);
  if (learn_.bias != 0) {
    params_.tensor(start_bias_, "memory_bias", at::zeros({heads, value_dim}, init_options()));
    bias_part_ = fixed("bias", vector);
    running_bias_ = fixed("running_bias", vector);
  }
  position_ = fixed("position", {1});
}

at::Tensor LearnLayer::learn(RecurrentPass& pass, X x) {
  x.initial_state = pass.begin(memory_part_, start_);
  if (start_bias_.defined()) x.initial_bias = pass.begin(bias_part_, start_bias_);
  if (pass.decodes()) {  // between two chunks both are the same
    pass.begin(running_, start_);
    if (start_bias_.defined()) pass.begin(running_bias_, start_bias_);
  }
  const auto whole = [&](X& y, const at::Tensor& pack) { op::learn(y, learn_, pack); };
  const auto step = [&](X& y) { op::learn_step(y, learn_); };
  std::vector<Carried<X>> parts = {{memory_part_, &X::initial_state, &X::final_state},
                                   {running_, &X::initial_running, &X::final_running},
                                   {position_, &X::initial_position, &X::final_position}};
  if (momentum_) parts.push_back({momentum_part_, &X::initial_momentum, &X::final_momentum});
  if (start_bias_.defined()) {
    parts.push_back({bias_part_, &X::initial_bias, &X::final_bias});
    parts.push_back({running_bias_, &X::initial_running_bias, &X::final_running_bias});
  }
  return pass.advance<X>(std::move(x), parts, whole, step);
}

}  // namespace heed::mixer
