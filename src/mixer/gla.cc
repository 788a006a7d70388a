// Gated linear attention: a matrix state with a data-dependent decay per key channel.
// Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv
// 2312.06635 (recurrence: eq. 3; chunked form: section 4; layer: section 4.4).
#include <ATen/ATen.h>

#include "mixer/common/recurrent_layer.h"
#include "mixer/common/scan_core.h"

namespace heed::mixer {
namespace {

// y = (swish(x Wr) . RMSNorm_head(o)) Wo, log a = logsigmoid(x W1 W2 + b) / 16.
class GlaLayer : public RecurrentLayer {
 public:
  explicit GlaLayer(const LayerConfig& config) {
    LayerOptions options("gla", config);
    heads_ = options.heads();
    key_dim_ = options.head_width("expand_k", 0.5);
    value_dim_ = options.head_width("expand_v", 1.0);
    rank_ = options.integer("gate_rank", 16);
    normalizer_ = options.number("gate_normalizer", 16.0);
    taps_ = options.integer("conv", 0, 0);  // 0: no short convolution
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim_, hv = heads_ * value_dim_;
    parameters_["q_proj.weight"] = init_projection(hk, c);
    parameters_["k_proj.weight"] = init_projection(hk, c);
    parameters_["v_proj.weight"] = init_projection(hv, c);
    parameters_["g_proj.weight"] = init_projection(hv, c);
    parameters_["gk_proj.0.weight"] = init_projection(rank_, c);
    parameters_["gk_proj.1.weight"] = init_projection(hk, rank_);
    parameters_["gk_proj.1.bias"] = at::zeros({hk}, init_options());
    parameters_["g_norm.weight"] = at::ones({value_dim_}, init_options());
    parameters_["o_proj.weight"] = init_projection(c, hv);
    if (taps_ > 0) {
      parameters_["q_conv1d.weight"] = init_conv(hk, taps_);
      parameters_["k_conv1d.weight"] = init_conv(hk, taps_);
      parameters_["v_conv1d.weight"] = init_conv(hv, taps_);
    }
  }

  at::Tensor forward(const at::Tensor& x, Call& call) override {
    RecurrentPass pass("gla", x, call);
    const auto token = [&](const char* name) {
      const std::string n = name;
      at::Tensor y = project(x, parameter(n + "_proj.weight"));
      if (taps_ > 0) y = at::silu(pass.short_conv("conv_" + n, y, parameter(n + "_conv1d.weight")));
      return heads(y, heads_);
    };
    const at::Tensor q = token("q"), k = token("k"), v = token("v");
    const at::Tensor z = project(project(x, parameter("gk_proj.0.weight")),
                                 parameter("gk_proj.1.weight"), parameter("gk_proj.1.bias"));
    op::ScanInputs in;
    in.log_decay = heads(at::log_sigmoid(z.to(at::kFloat)).div(normalizer_), heads_);
    op::ScanOptions options;
    options.scale = 1.0 / std::sqrt(static_cast<double>(key_dim_));
    const at::Tensor o = pass.scan("state", q, k, v, in, options);
    pass.finish();
    const at::Tensor gate = at::silu(project(x, parameter("g_proj.weight")));
    const at::Tensor normed = rms_norm(o, parameter("g_norm.weight"), 1e-5);
    return project(normed.flatten(2).mul(gate), parameter("o_proj.weight"));
  }

  int64_t flops(int64_t tokens) const override {
    return projection_flops(parameters_, tokens) +
           scan_flops(tokens, heads_, key_dim_, value_dim_, false);
  }
  Traits traits() const override { return recurrent_traits(true); }

 protected:
  std::map<std::string, std::vector<int64_t>> state_shapes() const override {
    std::map<std::string, std::vector<int64_t>> shapes = {
        {"state", {1, heads_, key_dim_, value_dim_}}};
    if (taps_ > 0) {
      shapes["conv_q"] = shapes["conv_k"] = {taps_ - 1, heads_ * key_dim_};
      shapes["conv_v"] = {taps_ - 1, heads_ * value_dim_};
    }
    return shapes;
  }

 private:
  int64_t heads_, key_dim_, value_dim_, rank_, taps_;
  double normalizer_;
};

}  // namespace

void register_gla(Registry& registry) {
  Mechanism m;
  m.card.id = "gla";
  m.card.equations = "S_t = diag(a_t) S_{t-1} + k_t^T v_t\nout_t = scale q_t S_t";
  set_scan_row(m.card, {gate("log_decay", "B,T,H,K", Sample::kLogDecay)});
  m.traits = recurrent_traits(true);
  m.core = [](const CoreCall& call) { return scan_core(call); };
  m.layer = [](const LayerConfig& config) { return std::make_unique<GlaLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
