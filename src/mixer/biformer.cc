// Bi-level routing attention: a map is cut into regions, each sends its queries to the regions
// whose mean keys fit its mean query best. Zhu et al., "BiFormer: Vision Transformer with Bi-Level
// Routing Attention", arXiv 2303.08810 (eqs. 2-6).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/attend_core.h"
#include "mixer/common/core_layer.h"
#include "mixer/common/dense_attention.h"
#include "op/layout.h"

namespace heed::mixer {
namespace {

// [B,T,H,D] in region order -> means [B,regions,H D]
at::Tensor region_means(const at::Tensor& t, int64_t regions) {
  return t.to(dense_type(t)).view({t.size(0), regions, -1, t.size(2) * t.size(3)}).mean(2);
}

// The best regions of each, ascending: [B,regions,topk] int64.
at::Tensor route(const at::Tensor& q, const at::Tensor& k, int64_t regions, int64_t topk) {
  const at::Tensor scores =
      at::matmul(region_means(q, regions), region_means(k, regions).transpose(1, 2));
  const at::Tensor order = std::get<1>(at::sort(scores, std::optional<bool>(true), -1, true));
  return std::get<0>(order.slice(2, 0, topk).sort(2));
}

// A depthwise correlation of v on the whole map, channel h V + d.
at::Tensor local_part(const at::Tensor& v, const at::Tensor& weight, const at::Tensor& bias,
                      const std::vector<int64_t>& grid) {
  const int64_t channels = v.size(2) * v.size(3), a = weight.size(1);
  if (a % 2 == 0 || weight.size(2) != a) {
    throw UsageError("lepe_weight must be square with an odd side, its sides are {} and {}", a,
                     weight.size(2));
  }
  const auto wide = dense_type(v);
  const at::Tensor map =
      v.to(wide).flatten(2).transpose(1, 2).reshape({v.size(0), channels, grid[0], grid[1]});
  const at::Tensor y =
      at::conv2d(map, weight.to(wide).unsqueeze(1), bias.defined() ? bias.to(wide) : at::Tensor(),
                 1, a / 2, 1, channels);
  return y.flatten(2).transpose(1, 2).reshape(v.sizes());
}

NamedTensors biformer_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const std::vector<int64_t>& grid = call.settings.ints("grid");
  const int64_t n = call.settings.integer("regions"), regions = n * n, t = q.size(1);
  if (grid.size() != 2 || grid[0] * grid[1] != t) {
    throw UsageError("grid must have two axes and {} cells, as many as q has tokens", t);
  }
  const double width = static_cast<double>(q.size(2) * q.size(3));
  op::AttendOptions options;
  options.scale = call.settings.number("scale", 1 / std::sqrt(width));
  const int64_t topk = std::min(call.settings.integer("topk"), regions);
  const at::Tensor order = op::region_order(grid, {n, n}).to(q.device());
  const auto permuted = [&](const at::Tensor& x) { return x.index_select(1, order); };
  const at::Tensor qp = permuted(q), kp = permuted(k), vp = permuted(v);
  const at::Tensor chosen = route(qp.detach(), kp.detach(), regions, topk);
  const int64_t cells = t / std::max<int64_t>(regions, 1);
  at::Tensor out;
  if (call.form == "naive") {
    const at::Tensor all = at::arange(regions, chosen.options());
    const at::Tensor open = chosen.unsqueeze(3).eq(all).any(2);  // [B,regions,regions]
    const at::Tensor visible = open.repeat_interleave(cells, 1).repeat_interleave(cells, 2);
    const at::Tensor x = dense_logits(qp, kp, *options.scale);
    out = dense_values(dense_softmax(x, visible.unsqueeze(1)).first, vp);
  } else {
    // One region is one block of queries and one of keys; the lists of a batch row serve its heads.
    const int64_t batch = q.size(0), heads = q.size(2);
    options.q_block = options.k_block = cells;
    const at::Tensor start = at::arange(regions + 1, at::kLong).mul(topk);
    const at::Tensor rows = at::arange(batch, at::kLong).mul(regions * topk).view({batch, 1, 1});
    options.block_start = start.add(rows).expand({batch, heads, regions + 1}).contiguous();
    options.block_index = chosen.cpu().flatten().to(at::kInt);
    out = std::get<0>(op::attend(qp, kp, vp, options));
  }
  out = out.index_select(1, op::inverse_order(order));
  if (const at::Tensor weight = call.get("lepe_weight"); weight.defined()) {
    const at::Tensor local = local_part(v, weight, call.get("lepe_bias"), grid);
    out = out.to(local.scalar_type()).add(local).to(v.scalar_type());
  } else if (const at::Tensor bias = call.get("lepe_bias"); bias.defined()) {
    throw UsageError("lepe_bias needs lepe_weight");
  }
  return {{"out", out}, {"indices", chosen}};
}

// q, k, v and the last projection with biases, the local part a depthwise convolution with one (of
// side `lepe`, 5; 0: none).
class BiformerLayer final : public CoreLayer {
 public:
  explicit BiformerLayer(const LayerConfig& config)
      : CoreLayer("biformer", with_biases(config), kRotation | kKeySet | kWindow | kAllHeads,
                  {"regions", "topk", "scale"}) {
    const int64_t side = options_.integer("lepe", 5, 0);
    options_.close();
    if (side == 0) return;
    if (side % 2 == 0) throw UsageError("mixer biformer: lepe is {}, expected an odd side", side);
    const int64_t channels = view().heads * view().value_dim;
    const double bound = 1 / static_cast<double>(side);  // of a convolution with side^2 inputs
    params_.tensor(weight_, "lepe.weight", init_uniform({channels, side, side}, bound));
    params_.tensor(bias_, "lepe.bias", init_uniform({channels}, bound));
  }
  bool takes(Pattern pattern) const override { return pattern == Pattern::kNoncausalSelf; }

 protected:
  void more_inputs(const Heads& h, const Sequences& part, CoreCall& call) override {
    if (!weight_.defined()) return;
    call.in["lepe_weight"] = weight_, call.in["lepe_bias"] = bias_;
  }

 private:
  static LayerConfig with_biases(LayerConfig config) {
    config.qkv_bias = config.out_bias = true;
    return config;
  }
  at::Tensor weight_, bias_;
};

}  // namespace

void register_biformer(Registry& registry) {
  Mechanism m;
  m.card.id = "biformer";
  m.card.equations =
      "score_ab = mean q of region a . mean k of region b (all heads), the topk best regions each\n"
      "out_i = softmax attention over the tokens of the regions chosen by i's + lepe(v)_i";
  m.card.try_line =
      "heed apply biformer --in IN.safetensors --out OUT.safetensors --set grid=6x8 --set "
      "regions=2 "
      "--set topk=2";
  m.card.patterns = "noncausal self";
  m.card.state_size = "0";
  m.card.apply.inputs = {token("q", "B,T,H,D"), token("k", "B,T,H,D"), token("v", "B,T,H,V"),
                         gate("lepe_weight", "H V,a,a").maybe(), gate("lepe_bias", "H V").maybe()};
  m.card.apply.settings = {grid_setting(), int_setting("regions", "7").at_least(1),
                           int_setting("topk", "4").at_least(1), scale_setting("(H D)^-0.5")};
  m.card.apply.outputs = {output("out", "B,T,H,V"),
                          index_output("indices", "B,regions^2,min(topk,regions^2)")};
  m.card.apply.forms = {"parallel", "naive"};
  m.traits.causality = Causality::kNone;
  m.traits.heads_independent = false;
  TestCard& tests = m.card.tests;
  tests.sizes = {{"H", 3}, {"D", 9}, {"V", 6}, {"a", 3}, {"T", 48}};
  tests.large = {{"D", 64}, {"V", 64}};
  tests.timed = {{"regions", "8"}, {"topk", "4"}};
  tests.always = {{"grid", "6x8"}, {"regions", "2"}, {"topk", "2"}};
  tests.tries = {{{{"grid", "9x6"}, {"regions", "3"}, {"topk", "4"}}, {{"T", 54}}, {}},
                 {{{"topk", "9"}}, {}, {"lepe_weight", "lepe_bias"}}};
  tests.layer = {R"({"regions": 2, "topk": 2, "lepe": 3})", R"({"regions": 2, "lepe": 3})", {6, 8}};
  m.core = biformer_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<BiformerLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
