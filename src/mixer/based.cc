// Based: linear attention with the second-order Taylor features of the exponential. Arora et al.,
// "Simple linear attention language models balance the recall-throughput tradeoff", arXiv
// 2402.18668 (section 4.1).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/pool_core.h"
#include "mixer/common/rows.h"

namespace heed::mixer {
namespace {

// [1; x s; x_a x_b s^2/sqrt 2] with s^2 = scale, pairs row by row: f(q).f(k) = 1 + u + u^2/2 with
// u = scale q.k.
at::Tensor features(const at::Tensor& x, double scale) {
  const at::Tensor y = x.mul(std::sqrt(scale));
  const at::Tensor pairs = y.unsqueeze(-1).mul(y.unsqueeze(-2)).flatten(-2).mul(std::sqrt(0.5));
  return at::cat({at::ones_like(y.slice(-1, 0, 1)), y, pairs}, -1);
}

// Divided by the sum of the weights.
op::PoolOptions normalised(double eps) {
  return {.scale = 1, .a0 = 0, .a1 = 1, .b0 = 0, .b1 = 0, .eps = eps, .by_count = 0, .clamp = 0};
}

NamedTensors based_core(const CoreCall& call) {
  const at::ScalarType type = call.get("v").scalar_type();
  const at::ScalarType compute = type == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor q = call.get("q").to(compute), k = call.get("k").to(compute);
  const double width = static_cast<double>(std::max<int64_t>(q.size(3), 1));
  const double scale = call.settings.number("scale", 1.0 / std::sqrt(width));
  PoolRead read{{}, normalised(call.settings.number("eps", 1e-12))};
  read.x.q = features(q, scale), read.x.k = features(k, scale);
  read.x.v = call.get("v").to(compute);
  NamedTensors result;
  if (call.settings.flag("causal")) {
    result = pool_scan(call, read);
  } else {
    result["out"] = pool_read(call, read);
  }
  result["out"] = result["out"].to(type);
  return result;
}

// y = (linear attention + attention in a window) Wo over the same values: the first with keys of
// `feature_dim` numbers a head, the second exact, with rotary embedding. window = 0: the first
// alone.
class BasedLayer : public RecurrentLayer {
 public:
  explicit BasedLayer(const LayerConfig& config) : RecurrentLayer("based") {
    LayerOptions options("based", config);
    heads_ = options.heads();
    head_dim_ = options.head_dim();
    const int64_t dim = options.integer("feature_dim", 16);
    window_ = options.integer("window", 64, 0);
    theta_ = options.number("rope_theta", 10000, 0);
    options.close();
    if (window_ > 0 && head_dim_ % 2 != 0) {
      throw UsageError("mixer based: rotation needs an even head size, it is {}", head_dim_);
    }
    const int64_t c = options.hidden(), width = heads_ * head_dim_;
    projections(qkv_, heads_ * dim, heads_ * dim, width, c);
    projection(out_, "o", c, width);
    const int64_t features = 1 + dim + dim * dim;
    parts_.state = fixed("state", {1, heads_, features, head_dim_});
    parts_.z = fixed("z", {1, heads_, features});
    if (window_ > 0) {
      projection(near_q_, "window.q", width, c);
      projection(near_k_, "window.k", width, c);
      near_ = window("window", heads_, head_dim_, window_);
    }
    scale_ = 1.0 / std::sqrt(static_cast<double>(dim));
  }

  Traits traits() const override { return recurrent_traits(false); }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    const auto project = [&](const HeadTokens& to) {
      return features(pass.tokens(to, x, heads_).to(at::kFloat), scale_);
    };
    const at::Tensor v = pass.tokens(qkv_.v, x, heads_);
    PoolRead read{{}, normalised(1e-12)};
    read.x.q = project(qkv_.q), read.x.k = project(qkv_.k), read.x.v = v.to(at::kFloat);
    at::Tensor o = pool_pass(pass, parts_, read).to(x.scalar_type());
    if (window_ > 0) {
      const RopeTables angles = rope_at(pass.positions(), head_dim_, theta_);
      const auto turned = [&](const HeadTokens& to) {
        return rotate(pass.tokens(to, x, heads_), angles.cos, angles.sin);
      };
      o = o.add(pass.attend_window(near_, turned(near_q_), turned(near_k_), v));
    }
    return linear(o.flatten(2), out_.weight);
  }

 private:
  int64_t heads_, head_dim_, window_;
  double theta_, scale_;
  QkvTokens qkv_;
  HeadTokens near_q_, near_k_, out_;  // near_: undefined without a window
  PoolParts parts_;
  size_t near_ = 0;
};

}  // namespace

void register_based(Registry& registry) {
  Mechanism m;
  m.card.id = "based";
  m.card.equations =
      "f(x) = [1; x s; x_a x_b s^2/sqrt 2],  s = sqrt(scale)\n"
      "out_i = sum_j (f(q_i).f(k_j)) v_j / (sum_j f(q_i).f(k_j) + eps)\n"
      "causal: S_t = S_{t-1} + f(k_t)^T v_t,  z_t = z_{t-1} + f(k_t)";
  m.card.state_size = "H (1+D+D^2) (V+1)";
  ApplyRow& row = m.card.apply;
  set_pool_row(m.card, "causal self, noncausal self, noncausal cross", {{"D", 4}, {"V", 5}},
               {{"D", 16}, {"V", 64}});
  add_pool_states(m.card, "1+D+D^2", normalised(0));
  row.inputs.push_back(offsets().only("causal=true"));
  row.settings = {flag_setting("causal", true), scale_setting("D^-0.5"),
                  number_setting("eps", "1e-12"), chunk_setting()};
  m.traits = recurrent_traits(false);
  m.core = based_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<BasedLayer>(config); };
  m.card.tests.layer.options = R"({"window": 5, "feature_dim": 6})";
  // A sum of features: its count outweighs the linear part, so that no divisor is near 0.
  m.fit_inputs = [](NamedTensors& in, const Settings&) {
    const auto z = in.find("initial_z");
    if (z == in.end()) return;
    at::Tensor count = at::zeros_like(z->second);
    count.select(-1, 0).fill_(3.0);
    z->second = z->second.mul(0.2).add(count);
  };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
