// Sigmoid attention: each key is weighed on its own, with a constant negative bias in place of the
// normaliser. Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
// arXiv 2409.04431 (eq. 3).
#include "mixer/common/attend_core.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {

void register_sigmoid_attention(Registry& registry) {
  Mechanism m;
  m.card.id = "sigmoid-attention";
  m.card.family = "dense";
  m.card.kind = "mixer, training";
  m.card.title = "Theory, Analysis, and Best Practices for Sigmoid Self-Attention (2024)";
  m.card.paper = "arXiv 2409.04431";
  m.card.equations =
      "x_ij = cap(scale q_i.k_j) - alibi_slopes[h] |p_i - j| + key_bias_jh\n"
      "out_i = sum_j sigmoid(x_ij + bias) v_j";
  m.card.patterns = "causal self, noncausal self, causal cross, noncausal cross";
  m.card.state_size = "Hk (D + Dv) T";
  m.card.try_line =
      "heed apply sigmoid-attention --in IN.safetensors --out OUT.safetensors --set causal=true";
  m.card.apply = attend_row();
  m.card.apply.settings.push_back({"bias", SettingType::kNumber, "-ln of the number of keys"});
  m.traits.noncausal = true;
  m.forms = attend_forms;
  m.core = [](const CoreCall& call) {
    const auto [out, lse] = run_attend(call, attend_options(call, kernel::Weight::kSigmoid));
    return NamedTensors{{"out", out}};
  };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
