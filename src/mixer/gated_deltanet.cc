// Gated DeltaNet: the delta rule on a state that first decays.
// Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", arXiv
// 2412.06464 (recurrence: eq. 10; layer: section 3.3).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// y = (RMSNorm_head(o) . silu(x Wg)) Wo; q, k, v as in DeltaNet; log a = -exp(A_log) softplus(x Wa
// + dt_bias).
class GatedDeltaNetLayer : public RecurrentLayer {
 public:
  explicit GatedDeltaNetLayer(const LayerConfig& config) {
    LayerOptions options("gated-deltanet", config);
    heads_ = options.heads();
    key_dim_ = options.head_width("expand_k", 0.75);
    value_dim_ = options.head_width("expand_v", 1.5);
    taps_ = options.integer("conv", 4);
    beta_range_ = options.flag("negative_eigenvalues", false) ? 2.0 : 1.0;
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim_, hv = heads_ * value_dim_;
    parameters_["q_proj.weight"] = init_projection(hk, c);
    parameters_["k_proj.weight"] = init_projection(hk, c);
    parameters_["v_proj.weight"] = init_projection(hv, c);
    parameters_["g_proj.weight"] = init_projection(hv, c);
    parameters_["a_proj.weight"] = init_projection(heads_, c);
    parameters_["b_proj.weight"] = init_projection(heads_, c);
    parameters_["A_log"] = at::log(at::empty({heads_}, init_options()).uniform_(1e-3, 16.0));
    parameters_["dt_bias"] = init_dt_bias(heads_);
    parameters_["q_conv1d.weight"] = init_conv(hk, taps_);
    parameters_["k_conv1d.weight"] = init_conv(hk, taps_);
    parameters_["v_conv1d.weight"] = init_conv(hv, taps_);
    parameters_["o_norm.weight"] = at::ones({value_dim_}, init_options());
    parameters_["o_proj.weight"] = init_projection(c, hv);
  }

  at::Tensor forward(const at::Tensor& x, Call& call) override {
    RecurrentPass pass("gated-deltanet", x, call);
    const auto token = [&](const char* name) {
      const std::string n = name;
      const at::Tensor y = project(x, parameter(n + "_proj.weight"));
      return heads(at::silu(pass.short_conv("conv_" + n, y, parameter(n + "_conv1d.weight"))),
                   heads_);
    };
    const at::Tensor q = l2_norm(token("q"), 1e-6), k = l2_norm(token("k"), 1e-6), v = token("v");
    op::ScanInputs in;
    in.beta = at::sigmoid(project(x, parameter("b_proj.weight")).to(at::kFloat)).mul(beta_range_);
    const at::Tensor dt = at::softplus(project(x, parameter("a_proj.weight"))
                                           .to(at::kFloat)
                                           .add(parameter("dt_bias").to(at::kFloat)));
    in.log_decay = dt.mul(at::exp(parameter("A_log").to(at::kFloat)).neg());
    op::ScanOptions options;
    options.scale = 1.0 / std::sqrt(static_cast<double>(key_dim_));
    const at::Tensor o = pass.scan("state", q, k, v, in, options);
    pass.finish();
    const at::Tensor gate = at::silu(project(x, parameter("g_proj.weight")));
    const at::Tensor normed = rms_norm(o, parameter("o_norm.weight"), 1e-5);
    return project(normed.flatten(2).mul(gate), parameter("o_proj.weight"));
  }

  int64_t flops(int64_t tokens) const override {
    return projection_flops(parameters_, tokens) +
           scan_flops(tokens, heads_, key_dim_, value_dim_, true);
  }
  Traits traits() const override { return recurrent_traits(true); }

 protected:
  std::map<std::string, std::vector<int64_t>> state_shapes() const override {
    const int64_t hk = heads_ * key_dim_, hv = heads_ * value_dim_;
    return {{"state", {1, heads_, key_dim_, value_dim_}},
            {"conv_q", {taps_ - 1, hk}},
            {"conv_k", {taps_ - 1, hk}},
            {"conv_v", {taps_ - 1, hv}}};
  }

 private:
  int64_t heads_, key_dim_, value_dim_, taps_;
  double beta_range_;
};

}  // namespace

void register_gated_deltanet(Registry& registry) {
  Mechanism m;
  m.card.id = "gated-deltanet";
  m.card.equations =
      "S' = a_t S_{t-1}\nS_t = S' + beta_t k_t^T (v_t - k_t S')\nout_t = scale q_t S_t";
  m.card.state_note = "and 3 inputs of each convolution";
  set_scan_row(
      m.card, {gate("beta", "B,T,H", Sample::kGate), gate("log_decay", "B,T,H", Sample::kLogDecay)},
      Sample::kUnit);
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) { return scan_core(call); };
  m.layer = [](const LayerConfig& config) { return std::make_unique<GatedDeltaNetLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
