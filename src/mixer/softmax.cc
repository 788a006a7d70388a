// Softmax attention, with sliding window, sinks, ALiBi, key bias and soft cap as options.
// Vaswani et al., "Attention Is All You Need", arXiv 1706.03762 (eq. 1); ALiBi: 2108.12409; sinks +
// window: 2309.17453; soft cap: 2408.00118.
#include "mixer/common/attend_core.h"
#include "mixer/common/attention_layer.h"

namespace heed::mixer {
namespace {

// The layer of Llama, Mistral, Qwen and GPT-2 (rotation, norms of heads and biases as their model
// says).
class SoftmaxLayer final : public AttentionLayer {
 public:
  explicit SoftmaxLayer(const LayerConfig& config) : AttentionLayer("softmax", config) {
    options_.close();
  }
};

}  // namespace

void register_softmax(Registry& registry) {
  Mechanism m;
  m.card.id = "softmax";
  m.card.equations =
      "x_ij = cap(scale q_i.k_j) - alibi_slopes[h] |p_i - j| + key_bias_jh\n"
      "out_i = sum_j exp(x_ij) v_j / sum_j exp(x_ij),  lse_i = ln sum_j exp(x_ij)";
  m.card.try_line =
      "heed apply softmax --in IN.safetensors --out OUT.safetensors --set causal=true --set "
      "window=128 "
      "--set sinks=4";
  set_attend_row(m.card);
  m.card.state_note = "with a window: Hk (D+Dv) (sinks+window)";
  m.card.apply.outputs.push_back(output("lse", "B,Tq,Hq").constant());
  m.core = [](const CoreCall& call) {
    const auto [out, lse] = run_attend(call, attend_options(call, kernel::Weight::kSoftmax));
    return NamedTensors{{"out", out}, {"lse", lse}};
  };
  m.layer = [](const LayerConfig& config) { return std::make_unique<SoftmaxLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
