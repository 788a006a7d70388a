// InLine: linear attention whose rows are made to sum to 1 by taking off their mean in place of
// dividing by their sum, so that collinear queries keep different rows; with a predicted 3x3
// residual. Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", arXiv
// 2412.06590 (eqs. 7-9; the factor c/S is that of the released code).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/pool_core.h"
#include "mixer/common/rows.h"

namespace heed::mixer {
namespace {

constexpr op::PoolOptions kRead = {
    .scale = 1, .a0 = 1, .a1 = 0, .b0 = 1, .b1 = -1, .eps = 0, .by_count = 1, .clamp = 0};

at::Tensor feature(const std::string& phi, const at::Tensor& x) {
  if (phi == "relu") return at::relu(x);
  if (phi == "leaky_relu") return at::leaky_relu(x, 0.01);
  return phi == "exp" ? x.mul(0.2).exp() : x;
}

NamedTensors inline_attention_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), v = call.get("v");
  const std::string& phi = call.settings.word("phi");
  PoolRead read{{}, kRead};
  read.x.q = feature(phi, q);
  read.x.k = feature(phi, call.get("k"));
  read.x.v = v;
  const double width = static_cast<double>(std::max<int64_t>(1, q.size(-1)));
  read.options.scale = call.settings.number("scale", 1 / std::sqrt(width));
  if (call.settings.flag("causal")) return pool_scan(call, read);
  at::Tensor out = pool_read(call, read);
  if (const at::Tensor kernel = call.get("kernel"); kernel.defined()) {
    if (v.size(1) != q.size(1)) {
      throw UsageError("inline-attention: kernel needs as many keys as queries, not S = {}, T = {}",
                       v.size(1), q.size(1));
    }
    const std::vector<int64_t> grid = call.settings.axes("grid", 2);
    const int64_t outside = call.settings.integer("cls");
    out = out.add(grid_convolution(v, kernel, grid[0], grid[1], outside));
  }
  return {{"out", out}};
}

// q, k, v and the output with biases. `local`: the 3x3 kernels of the values are predicted from the
// mean of x, r = W2 gelu(W1 mean), both by groups of a head; that residual is not causal and needs
// the grid of the tokens.
class InlineLayer : public RecurrentLayer {
 public:
  explicit InlineLayer(const LayerConfig& config) : RecurrentLayer("inline-attention") {
    LayerOptions options("inline-attention", config);
    heads_ = options.heads();
    const int64_t key_dim = options.head_width("expand_k", 1.0);
    phi_ = options.word("phi", {"identity", "relu", "leaky_relu", "exp"});
    local_ = options.flag("local", false);
    outside_ = options.integer("cls", 0, 0);
    options.close();
    const int64_t c = options.hidden(), hk = heads_ * key_dim;
    if (c % heads_ != 0) {
      throw UsageError("mixer inline-attention: hidden size {} is no multiple of its {} heads", c,
                       heads_);
    }
    projections(qkv_, hk, hk, c, c, true);
    projection(out_, "o", c, c, true);
    const int64_t value_dim = c / heads_;
    if (local_) {
      const auto grouped = [&](at::Tensor& weight, at::Tensor& bias, const std::string& name,
                               int64_t width) {
        const double bound = 1.0 / std::sqrt(static_cast<double>(value_dim));
        params_.tensor(weight, name + ".weight", init_uniform({width, value_dim, 1}, bound));
        params_.tensor(bias, name + ".bias", at::zeros({width}, init_options()));
      };
      grouped(mean_in_, mean_in_bias_, "residual.0", c);
      grouped(mean_out_, mean_out_bias_, "residual.2", 9 * c);
    } else {
      parts_.state = fixed("state", {1, heads_, key_dim, value_dim});
      parts_.z = fixed("z", {1, heads_, key_dim});
      parts_.u = fixed("u", {1, heads_, value_dim});
      parts_.n = fixed("n", {1, heads_});
    }
    options_ = kRead;
    options_.scale = 1.0 / std::sqrt(static_cast<double>(key_dim));
  }

  Traits traits() const override { return recurrent_traits(false); }
  bool takes(Pattern pattern) const override {
    return pattern == Pattern::kNoncausalSelf || (pattern == Pattern::kCausalSelf && !local_);
  }

 protected:
  at::Tensor mix(const at::Tensor& x, RecurrentPass& pass) override {
    PoolRead read{{}, options_};
    read.x.q = feature(phi_, pass.tokens(qkv_.q, x, heads_));
    read.x.k = feature(phi_, pass.tokens(qkv_.k, x, heads_));
    const at::Tensor v = read.x.v = pass.tokens(qkv_.v, x, heads_);
    at::Tensor o = pool_pass(pass, parts_, read);
    if (local_) o = o.add(residual(x, v, pass));
    return linear(o.flatten(2), out_.weight, out_.bias);
  }

 private:
  at::Tensor residual(const at::Tensor& x, const at::Tensor& v, const RecurrentPass& pass) const {
    const Grid& grid = pass.call().grid;
    if (grid.rank != 2) {
      throw UsageError(
          "mixer inline-attention: the local residual needs the 2-D grid of the tokens; set its "
          "option local to false");
    }
    const auto grouped = [&](const at::Tensor& t, const at::Tensor& weight,
                             const at::Tensor& bias) {  // [B,H,d] -> [B,H,outputs of a group]
      const at::Tensor by_head = weight.reshape({heads_, -1, weight.size(1)});
      return at::einsum("bhd,hod->bho", {t, by_head}).add(bias.reshape({heads_, -1}));
    };
    const auto of = [&](const at::Tensor& y, const at::Tensor& values) {
      const at::Tensor mean = y.mean(1).reshape({y.size(0), heads_, -1});
      const at::Tensor kernel =
          grouped(at::gelu(grouped(mean, mean_in_, mean_in_bias_)), mean_out_, mean_out_bias_)
              .reshape({y.size(0), y.size(2), 3, 3});
      return grid_convolution(values, kernel, grid.size[0], grid.size[1], outside_);
    };
    if (!pass.call().cu_seqlens.defined()) return of(x, v);
    std::vector<at::Tensor> parts;
    for (int64_t n = 0; n < pass.sequences(); ++n) {
      parts.push_back(of(pass.sequence(x, n), pass.sequence(v, n)));
    }
    return pass.joined(parts, v);
  }

  int64_t heads_, outside_;
  std::string phi_;
  bool local_;
  QkvTokens qkv_;
  HeadTokens out_;
  at::Tensor mean_in_, mean_in_bias_, mean_out_, mean_out_bias_;  // undefined unless local
  PoolParts parts_;
  op::PoolOptions options_;
};

}  // namespace

void register_inline_attention(Registry& registry) {
  Mechanism m;
  m.card.id = "inline-attention";
  m.card.equations =
      "f = phi(q), g = phi(k), n keys seen, gbar and vbar their means\n"
      "out_i = (scale/n) sum_j (f_i.g_j) v_j + (1 - scale f_i.gbar) vbar  (+ 3x3 convolution of v)";
  m.card.state_size = "H (D V+D+V+1)";
  ApplyRow& row = m.card.apply;
  set_pool_row(m.card, "noncausal self, noncausal cross, causal self", {{"D", 5}, {"V", 4}},
               {{"D", 32}, {"V", 64}});
  row.inputs.push_back(gate("kernel", "B,H V,3,3").maybe().only("causal=false, grid"));
  row.settings = {word_setting("phi", {"identity", "relu", "leaky_relu", "exp"}),
                  scale_setting("1/sqrt(D)"), flag_setting("causal", false), ints_setting("grid"),
                  int_setting("cls", "0").at_least(0)};
  add_pool_states(m.card, "D", kRead);
  TestCard& tests = m.card.tests;
  tests.tries = {{{{"grid", "5x7"}, {"cls", "2"}}, {{"T", 37}, {"S", 37}}, {}}};
  tests.bound = {4e-6, 1e-5, "the mean's part is taken off the read: a digit cancels"};
  m.traits = {.state = StateGrowth::kFixed, .linear_time = true};
  m.core = inline_attention_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<InlineLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
