// Sigmoid attention: each key is weighed on its own, with a constant negative bias in place of the
// normaliser. Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
// arXiv 2409.04431 (eq. 3).
#include "mixer/common/attend_core.h"

namespace heed::mixer {

void register_sigmoid_attention(Registry& registry) {
  Mechanism m;
  m.card.id = "sigmoid-attention";
  m.card.equations =
      "x_ij = cap(scale q_i.k_j) - alibi_slopes[h] |p_i - j| + key_bias_jh\n"
      "out_i = sum_j sigmoid(x_ij + bias) v_j";
  m.card.try_line =
      "heed apply sigmoid-attention --in IN.safetensors --out OUT.safetensors --set causal=true";
  set_attend_row(m.card);
  m.card.apply.settings.push_back(
      number_setting("bias", "-ln of the number of keys").trying({"-1.5"}));
  m.core = [](const CoreCall& call) {
    const auto [out, lse] = run_attend(call, attend_options(call, kernel::Weight::kSigmoid));
    return NamedTensors{{"out", out}};
  };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
