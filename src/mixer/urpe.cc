// Universal relative position encoding: softmax attention with a bias by distance, its weights
// multiplied by a learned factor by distance and not normalised again. Luo et al., "Your
// Transformer May Not be as Powerful as You Expect", arXiv 2205.13401 (eq. 8).
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/attend_core.h"
#include "mixer/common/attention_layer.h"

namespace heed::mixer {
namespace {

NamedTensors urpe_core(const CoreCall& call) {
  const bool relu = call.settings.is("c_act", "relu");
  op::AttendOptions options;
  options.weight = kernel::Weight::kUrpe;
  options.causal = call.settings.flag("causal");
  options.scale = call.settings.number("scale");
  options.relative_bias = call.get("b");
  options.relative_scale = relu ? at::relu(call.get("c")) : call.get("c");
  if (const at::Tensor mask = call.get("key_mask"); mask.defined()) {
    const at::Tensor zero = at::zeros(mask.sizes(), mask.options().dtype(at::kFloat));
    options.key_bias = zero.masked_fill(mask.eq(0), -std::numeric_limits<double>::infinity())
                           .unsqueeze(2)
                           .expand({mask.size(0), mask.size(1), call.get("q").size(2)});
  }
  return {{"out", std::get<0>(run_attend(call, options))}};
}

// Buckets of signed distances -(reach-1) .. reach-1, as in T5 (arXiv 1910.10683): half of them for
// each sign; of those half one a distance, the others as wide as their distance, up to `most`.
at::Tensor buckets_of(int64_t reach, int64_t buckets, int64_t most) {
  std::vector<int64_t> of(static_cast<size_t>(2 * reach - 1));
  const int64_t half = buckets / 2, exact = half / 2;
  const double ratio = std::log(static_cast<double>(most) / static_cast<double>(exact));
  for (int64_t d = 1 - reach; d < reach; ++d) {
    int64_t bucket = std::abs(d);
    if (bucket >= exact) {
      const double wide = std::log(static_cast<double>(bucket) / static_cast<double>(exact));
      bucket = std::min(
          exact + static_cast<int64_t>(wide / ratio * static_cast<double>(half - exact)), half - 1);
    }
    of[static_cast<size_t>(d + reach - 1)] = bucket + (d > 0 ? half : 0);
  }
  return at::tensor(of, at::kLong);
}

// Tables b (0 at first) and C (1) of the layer, one entry a head and signed distance up to `reach`
// tokens, or one a head and bucket. No rotation unless rope_theta asks for one.
class UrpeLayer final : public AttentionLayer {
 public:
  explicit UrpeLayer(const LayerConfig& config) : AttentionLayer("urpe", config, kRotation) {
    buckets_ = options_.integer("buckets", 0, 0);
    if (buckets_ != 0 && (buckets_ < 4 || buckets_ % 2 != 0)) {
      throw UsageError("mixer urpe: {} buckets; expected 0, or an even number of at least 4",
                       buckets_);
    }
    most_ = options_.integer("max_distance", 128);
    reach_ = options_.integer("reach", 2048);
    relu_ = options_.word("c_act", {"none", "relu"}) == "relu";
    if (buckets_ > 0 && most_ <= buckets_ / 4) {
      throw UsageError("mixer urpe: max_distance is {}, expected more than a quarter of {} buckets",
                       most_, buckets_);
    }
    options_.close();
    const int64_t entries = buckets_ > 0 ? buckets_ : 2 * reach_ - 1;
    params_.tensor(b_, "b", at::zeros({view().heads, entries}, init_options()));
    params_.tensor(c_, "c", at::ones({view().heads, entries}, init_options()));
  }

 protected:
  op::AttendOptions options(const at::Tensor& x, const Heads& h) const override {
    op::AttendOptions options = AttentionLayer::options(x, h);
    options.weight = kernel::Weight::kUrpe;
    const int64_t reach = std::max<int64_t>(longest(h), 1);
    if (buckets_ == 0 && reach > reach_) {
      throw UsageError(
          "mixer urpe: its tables reach {} tokens, the sequence has {}; make it with a larger "
          "\"reach\", or with \"buckets\"",
          reach_, reach);
    }
    const at::Tensor index =
        buckets_ > 0 ? buckets_of(reach, buckets_, most_).to(x.device()) : at::Tensor();
    const auto table = [&](const at::Tensor& t) {
      const at::Tensor wide = t.to(at::kFloat);
      return index.defined() ? wide.index_select(1, index)
                             : wide.narrow(1, reach_ - reach, 2 * reach - 1).contiguous();
    };
    options.relative_bias = table(b_);
    options.relative_scale = relu_ ? at::relu(table(c_)) : table(c_);
    return options;
  }

 private:
  // Tokens of the longest sequence, keys or queries.
  static int64_t longest(const Heads& h) {
    int64_t longest = is_cross(h.call.pattern) ? h.call.context.size(1) : 0;
    for (size_t s = 0; s + 1 < h.layout.bounds.size(); ++s) {
      const int64_t past = h.call.states.empty() ? 0 : h.call.states[s]->length();
      longest = std::max(longest, past + h.layout.bounds[s + 1] - h.layout.bounds[s]);
    }
    return longest;
  }

  int64_t buckets_, most_, reach_;
  bool relu_;
  at::Tensor b_, c_;
};

}  // namespace

void register_urpe(Registry& registry) {
  Mechanism m;
  m.card.id = "urpe";
  m.card.equations =
      "p = softmax_j(scale q_i.k_j + b[h, P-1 + j - p_i])\n"
      "out_i = sum_j c_act(c[h, P-1 + j - p_i]) p_ij v_j";
  m.card.patterns = "causal self, noncausal self, causal cross, noncausal cross";
  m.card.state_size = "Hk (D+Dv) Tk";
  m.card.apply.inputs = {token("q", "B,Tq,Hq,D"),       token("k", "B,Tk,Hk,D"),
                         token("v", "B,Tk,Hk,Dv"),      gate("c", "Hq,2 P-1"),
                         gate("b", "Hq,2 P-1").maybe(), index("key_mask", "B,Tk", "2").maybe()};
  m.card.apply.settings = {word_setting("c_act", {"none", "relu"}), flag_setting("causal", false),
                           scale_setting("1/sqrt(D)")};
  m.card.apply.outputs = {output("out", "B,Tq,Hq,Dv")};
  m.card.apply.forms = {"parallel", "naive", {"recurrent", "causal=true"}};
  m.card.tests.queries = "Tq", m.card.tests.keys = "Tk";
  m.card.tests.heads = {"Hq", "Hk"};
  m.card.tests.sizes = {{"Hq", 4}, {"Hk", 2}, {"D", 9}, {"Dv", 6}, {"P", 200}};
  m.card.tests.large = {{"D", 64}, {"Dv", 64}, {"P", 4096}};
  m.core = urpe_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<UrpeLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
