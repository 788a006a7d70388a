// Softmax attention, with sliding window, sinks, ALiBi, key bias and soft cap as options.
// Vaswani et al., "Attention Is All You Need", arXiv 1706.03762 (eq. 1); ALiBi: 2108.12409; sinks +
// window: 2309.17453; soft cap: 2408.00118.
#include "mixer/common/attend_core.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {

void register_softmax(Registry& registry) {
  Mechanism m;
  m.card.id = "softmax";
  m.card.family = "dense";
  m.card.kind = "mixer";
  m.card.title = "Attention Is All You Need (2017)";
  m.card.paper = "arXiv 1706.03762";
  m.card.equations =
      "x_ij = cap(scale q_i.k_j) - alibi_slopes[h] |p_i - j| + key_bias_jh\n"
      "out_i = sum_j exp(x_ij) v_j / sum_j exp(x_ij),  lse_i = ln sum_j exp(x_ij)";
  m.card.patterns = "causal self, noncausal self, causal cross, noncausal cross";
  m.card.state_size = "Hk (D + Dv) T; with a window: Hk (D + Dv) (sinks + window)";
  m.card.try_line =
      "heed apply softmax --in IN.safetensors --out OUT.safetensors --set causal=true --set "
      "window=128 "
      "--set sinks=4";
  m.card.apply = attend_row();
  TensorSpec lse = output("lse", "B,Tq,Hq");
  lse.grad = false;
  m.card.apply.outputs.push_back(lse);
  m.traits.noncausal = true;
  m.forms = attend_forms;
  m.core = [](const CoreCall& call) {
    const auto [out, lse] = run_attend(call, attend_options(call, kernel::Weight::kSoftmax));
    return NamedTensors{{"out", out}, {"lse", lse}};
  };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
