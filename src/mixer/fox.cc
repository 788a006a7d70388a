// Forgetting attention: softmax attention whose logits fall by the sum of the forget gates between
// key and query. Lin et al., "Forgetting Transformer: Softmax Attention with a Forget Gate", arXiv
// 2503.02130 (eqs. 5-7). c_i adds the same to all logits of a row, so that only -c_j is left: a
// bias of the key.
#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/attend_core.h"
#include "mixer/common/attention_layer.h"
#include "mixer/common/dense_attention.h"
#include "op/attend_shape.h"

namespace heed::mixer {
namespace {

// One sequence: x_ij = scale q_i.k_j + c_i - c_j for j <= i, i - j < window.
at::Tensor naive(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const at::Tensor& log_decay, double scale, int64_t window) {
  const int64_t t = q.size(1);
  const at::Tensor c = log_decay.to(at::kDouble).cumsum(1).transpose(1, 2);  // [B,H,T]
  const at::Tensor x =
      dense_logits(q, k, scale).add(c.unsqueeze(3).sub(c.unsqueeze(2)).to(dense_type(q)));
  at::Tensor visible = dense_visible(t, t, true, q.device());
  if (window > 0) visible = visible.triu(1 - window);
  return dense_values(dense_softmax(x, visible).first, v);
}

// Queries go in runs, each with the sums counted from its own start: a sum over the whole text
// would leave no digits for the differences that count.
at::Tensor chunked(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const at::Tensor& log_decay, op::AttendOptions options) {
  constexpr int64_t kRun = 512;
  const at::Tensor c = log_decay.to(at::kDouble).cumsum(1);
  std::vector<at::Tensor> outs;
  for (int64_t begin = 0; begin < q.size(1); begin += kRun) {
    const int64_t end = std::min(begin + kRun, q.size(1));
    const int64_t first = options.window > 0 ? std::max<int64_t>(begin - options.window + 1, 0) : 0;
    options.key_bias =
        c.slice(1, begin, begin + 1).detach().sub(c.slice(1, first, end)).to(at::kFloat);
    outs.push_back(std::get<0>(op::attend(q.slice(1, begin, end), k.slice(1, first, end),
                                          v.slice(1, first, end), options)));
  }
  return at::cat(outs, 1);
}

NamedTensors fox_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const at::Tensor log_decay = call.get("log_decay");
  if (!log_decay.isfinite().all().item<bool>()) {
    throw UsageError("fox: log_decay must be finite; a forget gate of 0 has no logarithm");
  }
  op::AttendOptions options;
  options.causal = true;
  options.scale = call.settings.number("scale", 1 / std::sqrt(static_cast<double>(q.size(3))));
  options.window = call.settings.integer("window", 0);
  std::vector<int64_t> offsets = {0, q.size(1)};
  if (const at::Tensor pack = call.get("cu_seqlens"); pack.defined()) {
    offsets = op::read_offsets(pack, q.size(1), "cu_seqlens");
  }
  std::vector<at::Tensor> outs = {v.new_zeros({q.size(0), 0, q.size(2), v.size(3)})};
  for (size_t n = 0; n + 1 < offsets.size(); ++n) {
    if (offsets[n] == offsets[n + 1]) continue;
    const auto part = [&](const at::Tensor& t) { return t.slice(1, offsets[n], offsets[n + 1]); };
    outs.push_back(
        call.form == "naive"
            ? naive(part(q), part(k), part(v), part(log_decay), *options.scale, options.window)
            : chunked(part(q), part(k), part(v), part(log_decay), options));
  }
  return {{"out", at::cat(outs, 1)}};
}

// log f = logsigmoid(x Wf + b), a gate a head and token. No rotation unless rope_theta asks for
// one. Beside each key the cache holds -c, counted from where the sum last began anew: once a
// head's sum is large, all its keys are moved, so that near ones keep their digits.
class FoxLayer final : public AttentionLayer {
 public:
  explicit FoxLayer(const LayerConfig& config) : AttentionLayer("fox", config, kRotation) {
    options_.close();
    params_.matrix(gate_, "f_proj.weight", view().heads, config.hidden);
    params_.tensor(bias_, "f_proj.bias", at::zeros({view().heads}, init_options()));
    rewrites_heads_ = true;
    columns_ = {{"bias", view().heads / view().kv_heads}};
  }
  bool takes(Pattern pattern) const override { return pattern == Pattern::kCausalSelf; }
  StateSpec state(const StateRequest& request) const override {
    StateSpec spec = AttentionLayer::state(request);
    spec.parts.push_back(FixedPart{"decay", {view().heads}, at::kDouble});
    return spec;
  }
  Traits traits() const override {
    Traits traits = AttentionLayer::traits();
    traits.can_truncate = false;  // the sum has gone on
    return traits;
  }

 protected:
  void before_rope(const at::Tensor& x, Heads& h) override {
    h.extra = at::log_sigmoid(linear(x, gate_, bias_).to(at::kFloat)).flatten(0, 1);  // [rows,H]
    if (plain(h)) return;
    std::vector<at::Tensor> sums = {h.extra.slice(0, 0, 0).to(at::kDouble)};
    for (size_t s = 0; s + 1 < h.layout.bounds.size(); ++s) {
      const int64_t begin = h.layout.bounds[s], end = h.layout.bounds[s + 1];
      if (begin == end) continue;
      at::Tensor sum = h.extra.slice(0, begin, end).to(at::kDouble).cumsum(0);
      if (!h.call.states.empty()) {
        State& state = *h.call.states[s];
        begin_anew(state);
        sum = sum.add(state.tensor(1));
        state.tensor(1).copy_(sum[-1]);
      }
      sums.push_back(sum);
    }
    h.key_bias = at::cat(sums)
                     .neg()
                     .to(at::kFloat)
                     .unflatten(1, {view().kv_heads, view().heads / view().kv_heads});
  }

  at::Tensor mix(Heads& h, op::AttendOptions options) override {
    if (!plain(h)) return AttentionLayer::mix(h, options);
    options.causal = true;
    options.window = view().window;
    return by_sequence(h, [&](const Sequences& part) {
      return part.length == 0 ? part(h.q)
                              : chunked(part(h.q), part(h.k), part(h.v), part(h.extra), options);
    });
  }

 private:
  void begin_anew(State& state) const {
    constexpr double kMost = 64;
    at::Tensor& sum = state.tensor(1);
    const at::Tensor large = sum.abs().gt(kMost);
    if (!large.any().item<bool>()) return;
    const at::Tensor moved = sum.mul(large);
    state.rows().add_to_column(0, moved.to(at::kFloat).view({view().kv_heads, -1}));
    sum.sub_(moved);
  }

  Weight gate_;
  at::Tensor bias_;
};

}  // namespace

void register_fox(Registry& registry) {
  Mechanism m;
  m.card.id = "fox";
  m.card.equations =
      "c_i = sum_{t<=i} log_decay_t\n"
      "x_ij = scale q_i.k_j + c_i - c_j   for j <= i, i - j < window\n"
      "out_i = sum_j exp(x_ij) v_j / sum_j exp(x_ij)";
  m.card.state_size = "J (K+V) T + H T";
  m.card.state_note = "and the sums of the last token, H";
  m.card.apply.inputs = {token("q", "B,T,H,K"), token("k", "B,T,J,K"), token("v", "B,T,J,V"),
                         gate("log_decay", "B,T,H", Sample::kLogDecay), offsets()};
  m.card.apply.settings = {scale_setting(), int_setting("window", "0, off").trying({"6"})};
  m.card.apply.outputs = {output("out", "B,T,H,V")};
  m.card.apply.forms = {"chunked", "naive"};
  m.card.tests.heads = {"H", "J"};
  m.card.tests.sizes = {{"H", 4}, {"J", 2}, {"K", 9}, {"V", 6}};
  m.card.tests.large = {{"K", 64}, {"V", 64}};
  m.core = fox_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<FoxLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
