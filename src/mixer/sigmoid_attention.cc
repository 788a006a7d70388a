// Sigmoid attention: each key is weighed on its own, with a constant negative bias in place of the
// normaliser. Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
// arXiv 2409.04431 (eq. 3).
#include "mixer/common/attend_core.h"
#include "mixer/common/attention_layer.h"

namespace heed::mixer {
namespace {

// y = o Wo. The bias is a constant, -ln of the number of keys in training.
class SigmoidLayer final : public AttentionLayer {
 public:
  explicit SigmoidLayer(const LayerConfig& config) : AttentionLayer("sigmoid-attention", config) {
    bias_ = options_.number("bias", -std::log(static_cast<double>(kTrainedOn)));
    options_.close();
  }

 protected:
  op::AttendOptions options(const at::Tensor& x, const Heads& h) const override {
    op::AttendOptions options = AttentionLayer::options(x, h);
    options.weight = kernel::Weight::kSigmoid;
    options.bias = bias_;
    return options;
  }

 private:
  static constexpr int64_t kTrainedOn = 1024;
  double bias_;
};

}  // namespace

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
  m.layer = [](const LayerConfig& config) { return std::make_unique<SigmoidLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
