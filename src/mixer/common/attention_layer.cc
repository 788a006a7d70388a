// See attention_layer.h.
#include "mixer/common/attention_layer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "cache/attend_states.h"
#include "io/error.h"
#include "nn/norm.h"
#include "nn/rows.h"
#include "op/attend_shape.h"

namespace heed::mixer {

using at::Tensor;

namespace {

bool causal(const Call& call) {
  return call.pattern == Pattern::kCausalSelf || call.pattern == Pattern::kCausalCross;
}
bool cross(const Call& call) {
  return call.pattern == Pattern::kCausalCross || call.pattern == Pattern::kNoncausalCross;
}

// Rows as [B, T, ...]; T may be a context's.
Tensor by_sequence(const Tensor& rows, const Layout& layout) {
  return rows.unflatten(0, {layout.batch, rows.size(0) / std::max<int64_t>(layout.batch, 1)});
}

// What the model has not worked out: where the rows of a layer's call alone stand.
Layout layout_of(const Tensor& x, const Call& call) {
  std::vector<int64_t> bounds, past;
  if (call.cu_seqlens.defined()) {
    bounds = op::read_offsets(call.cu_seqlens, x.size(1), "cu_seqlens");
  }
  call.sequences(x);
  for (const State* state : call.states) past.push_back(state->length());
  Layout layout = Layout::of(x, bounds, past);
  if (call.positions.defined()) {
    const Tensor given = call.positions.to(at::kCPU, at::kLong).contiguous();
    if (given.numel() != static_cast<int64_t>(layout.positions.size())) {
      throw UsageError("{} positions were given for {} tokens", given.numel(),
                       layout.positions.size());
    }
    std::copy_n(given.const_data_ptr<int64_t>(), given.numel(), layout.positions.begin());
    layout.end = 0;
    for (const int64_t p : layout.positions) layout.end = std::max(layout.end, p + 1);
  }
  layout.fused = !at::GradMode::is_enabled() && x.is_cpu() &&
                 (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
  return layout;
}

}  // namespace

AttentionLayer::AttentionLayer(const std::string& id, const LayerConfig& config)
    : Layer(Params::Order::kAsMade),
      options_(id, config),
      id_(id),
      index_(config.layer),
      hidden_(config.hidden),
      eps_(config.norm_eps),
      rope_(config.rope) {
  view_.heads = options_.heads();
  view_.kv_heads = options_.integer("kv_heads", config.kv_heads > 0 && config.heads == view_.heads
                                                    ? config.kv_heads
                                                    : view_.heads);
  view_.head_dim = view_.value_dim = options_.head_dim();
  view_.window = options_.integer("window", config.window, 0);
  if (view_.heads % view_.kv_heads != 0) {
    throw UsageError("mixer {}: {} heads are no multiple of {} key/value heads", id, view_.heads,
                     view_.kv_heads);
  }
  if (options_.has("rope_theta")) {
    RopeConfig rope;
    rope.base = options_.number("rope_theta", 0);
    if (rope.base > 0 && view_.head_dim % 2 != 0) {
      throw UsageError("mixer {}: rotation needs an even head size, it is {}", id, view_.head_dim);
    }
    constexpr int64_t kContext = 4096;
    rope_ = rope.base > 0 ? std::make_shared<Rope>(
                                rope_frequencies(rope, view_.head_dim, kContext, 0), kContext)
                          : nullptr;
  }
  const bool normed = options_.flag("qk_norm", config.qk_norm);
  own_.assign(view_.kv_heads, HeadProgram{view_.window, 0});

  const int64_t d = view_.head_dim, q_size = view_.heads * d, kv_size = view_.kv_heads * d;
  const at::TensorOptions tensors = config.drawn ? init_options() : config.tensors;
  const auto vector = [&](int64_t n, double value) {
    return config.drawn ? at::full({n}, value, tensors) : at::empty({n}, tensors);
  };
  qkv_.data = at::empty({q_size + 2 * kv_size, hidden_}, tensors);
  if (config.qkv_bias) qkv_bias_ = vector(q_size + 2 * kv_size, 0);
  const auto part = [&](Weight& weight, Tensor& bias, const std::string& name, int64_t row,
                        int64_t size) {
    const Tensor rows = qkv_.data.narrow(0, row, size).detach();
    if (config.drawn) rows.copy_(init_projection(size, hidden_));
    params_.matrix(weight, name + ".weight", rows);
    if (config.qkv_bias) {
      params_.tensor(bias, name + ".bias", qkv_bias_.narrow(0, row, size).detach());
    }
  };
  part(q_, q_bias_, "q_proj", 0, q_size);
  part(k_, k_bias_, "k_proj", q_size, kv_size);
  part(v_, v_bias_, "v_proj", q_size + kv_size, kv_size);
  params_.matrix(
      o_, "o_proj.weight",
      config.drawn ? init_projection(hidden_, q_size) : at::empty({hidden_, q_size}, tensors));
  if (config.out_bias) params_.tensor(o_bias_, "o_proj.bias", vector(hidden_, 0));
  if (normed) {
    params_.tensor(q_norm_, "q_norm.weight", vector(d, 1));
    params_.tensor(k_norm_, "k_norm.weight", vector(d, 1));
  }
}

bool AttentionLayer::joined() const {
  return qkv_.defined() && q_.data.storage().is_alias_of(qkv_.data.storage()) &&
         k_.data.storage().is_alias_of(qkv_.data.storage()) &&
         v_.data.storage().is_alias_of(qkv_.data.storage());
}

void AttentionLayer::moved() {
  if (joined()) return;
  qkv_ = Weight{};
  qkv_bias_ = Tensor();
}

// A plan's programs within the layer's own window.
const std::vector<HeadProgram>& AttentionLayer::programs(const std::vector<HeadProgram>* asked,
                                                         std::vector<HeadProgram>& merged) const {
  if (asked == nullptr) return own_;
  if (asked->size() != own_.size()) {
    throw UsageError("layer {} has {} key/value heads, programs were given for {}", index_,
                     own_.size(), asked->size());
  }
  merged = own_;
  for (size_t h = 0; h < merged.size(); ++h) {
    const HeadProgram& p = (*asked)[h];
    if (p.full()) continue;
    merged[h].window = view_.window > 0 ? std::min(view_.window, p.window) : p.window;
    merged[h].sinks = p.sinks;
    if (p.dropped != Dropped::kGone && view_.window > 0) {
      throw UsageError(
          "layer {} sees {} tokens by itself: a mean of all that a head dropped would show it "
          "more; leave \"comp\" out of its programs",
          index_, view_.window);
    }
    merged[h].dropped = p.dropped;
  }
  return merged;
}

StateSpec AttentionLayer::state(const StateRequest& request) const {
  RowsPart rows;
  std::vector<HeadProgram> merged;
  rows.k_dim = view_.head_dim;
  rows.v_dim = view_.value_dim;
  rows.columns = columns_;
  rows.programs = programs(request.programs, merged);
  rows.dense_prefill = request.dense_prefill;
  rows.dtype = request.kv_dtype;
  StateSpec spec;
  spec.device = params_.options().device();
  rows.grouped = !spec.device.is_cpu();
  spec.parts.push_back(std::move(rows));
  return spec;
}

int64_t AttentionLayer::flops(int64_t tokens) const {
  const int64_t window = view_.window > 0 ? std::min(view_.window, tokens) : tokens;
  const int64_t pairs = window * (window + 1) / 2 + (tokens - window) * window;
  return params_.flops(tokens) + 2 * pairs * view_.heads * (view_.head_dim + view_.value_dim);
}

Traits AttentionLayer::traits() const {
  Traits traits;
  traits.can_truncate = true;
  return traits;
}

// ----------------------------------------------------------------------------------------------
// a pass

// As ordinary operators: differentiable, any device.
Heads AttentionLayer::project(const Tensor& x, Call& call, const Layout& layout) {
  const bool across = cross(call);
  const Tensor& from = across ? call.context : x;
  const auto heads = [&](const Tensor& in, const Weight& w, const Tensor& bias, int64_t count) {
    return linear(in, w, bias).view({in.size(0) * in.size(1), count, view_.head_dim});
  };
  Heads h{heads(x, q_, q_bias_, view_.heads),
          heads(from, k_, k_bias_, view_.kv_heads),
          heads(from, v_, v_bias_, view_.kv_heads),
          {},
          layout,
          call};
  before_rope(x, h);
  if (q_norm_.defined()) {
    h.q = normalise(h.q, {q_norm_, {}, eps_});
    h.k = normalise(h.k, {k_norm_, {}, eps_});
  }
  if (rope_ && !across) {  // positions of two sequences have nothing to do with each other
    const RopeTables& angles = layout.rotation(*rope_, x.device());
    h.q = rotate(h.q, angles.cos, angles.sin);
    h.k = rotate(h.k, angles.cos, angles.sin);
  }
  return h;
}

// The same through one product for q, k and v and in-place loops.
Heads AttentionLayer::project_fused(const Tensor& x, Call& call, const Layout& layout) const {
  const int64_t rows = layout.batch * layout.length, d = view_.head_dim;
  const Tensor qkv = linear(x.reshape({rows, hidden_}), qkv_, qkv_bias_);
  if (rope_ || q_norm_.defined()) {
    static const RopeTables none;
    const RopeTables& tables = rope_ ? rope_->tables(layout.end, x.device()) : none;
    normalise_and_rotate(qkv, view_.heads, view_.kv_heads, d, layout.positions, tables.cos,
                         tables.sin, q_norm_, k_norm_, eps_);
  }
  const auto heads = [&](int64_t first, int64_t count) {
    return qkv.narrow(1, first * d, count * d).unflatten(1, {count, d});
  };
  return {heads(0, view_.heads),
          heads(view_.heads, view_.kv_heads),
          heads(view_.heads + view_.kv_heads, view_.kv_heads),
          {},
          layout,
          call};
}

op::AttendOptions AttentionLayer::options(const Tensor& x, const Heads& h) const {
  op::AttendOptions options;
  options.scale = 1.0 / std::sqrt(static_cast<double>(view_.head_dim));
  return options;
}

namespace {

AttendRule rule_of(const op::AttendOptions& options) {
  AttendRule rule(*options.scale);
  rule.weight = options.weight;
  rule.soft_cap = options.soft_cap;
  rule.sigmoid_bias = options.bias.value_or(0);
  rule.slopes = options.alibi_slopes;
  return rule;
}

// Window and sinks of the heads, as the operator takes them.
void set_programs(op::AttendOptions& options, const std::vector<HeadProgram>& programs) {
  for (const HeadProgram& p : programs) {
    if (p.dropped == Dropped::kGone) continue;
    throw UsageError("a plan with compensation tokens runs, but has no gradients or probes");
  }
  const bool one = std::all_of(programs.begin(), programs.end(),
                               [&](const HeadProgram& p) { return p == programs[0]; });
  if (one) {
    options.window = programs[0].window;
    options.sinks = programs[0].sinks;
    return;
  }
  std::vector<int64_t> windows, sinks;
  for (const HeadProgram& p : programs) {
    windows.push_back(p.window);
    sinks.push_back(p.sinks);
  }
  options.head_window = at::tensor(windows, at::kLong);
  options.head_sinks = at::tensor(sinks, at::kLong);
}

}  // namespace

Tensor AttentionLayer::mix(Heads& h, op::AttendOptions options) {
  const Layout& layout = h.layout;
  const Call& call = h.call;
  if (!call.states.empty()) {
    std::vector<Rows*> rows;
    rows.reserve(call.states.size());
    for (State* state : call.states) rows.push_back(&state->rows());
    return attend_states(h.q, h.k, h.v, layout.bounds, rows, {}, rule_of(options), h.key_bias);
  }
  std::vector<HeadProgram> merged;
  const std::vector<HeadProgram>& heads = programs(call.programs, merged);
  const bool self = call.pattern == Pattern::kCausalSelf;
  if (self && !call.attention && !at::GradMode::is_enabled()) {
    return attend_states(h.q, h.k, h.v, layout.bounds, {}, heads, rule_of(options), h.key_bias);
  }
  options.causal = causal(call);
  set_programs(options, heads);
  if (layout.pack) options.cu_seqlens_q = at::tensor(layout.bounds, at::kLong);
  const auto shaped = [&](const Tensor& t) { return by_sequence(t, layout); };
  if (h.key_bias.defined()) {
    const int64_t group = view_.heads / view_.kv_heads;
    options.key_bias =
        shaped(h.key_bias.expand({-1, -1, group}).reshape({h.key_bias.size(0), view_.heads}));
  }
  const Tensor out =
      call.attention ? (*call.attention)(call.layer, shaped(h.q), shaped(h.k), shaped(h.v), options)
                     : std::get<0>(op::attend(shaped(h.q), shaped(h.k), shaped(h.v), options));
  return out.flatten(0, 1);
}

// [B, T, Hq Dv], ready for the last projection.
Tensor AttentionLayer::attended(const Tensor& x, Call& call, const Layout& layout) {
  if (call.pattern != Pattern::kCausalSelf && !call.states.empty()) {
    throw UsageError("mixer {}: only causal self attention decodes with states", id_);
  }
  if (cross(call) && (!call.context.defined() || layout.pack)) {
    throw UsageError("mixer {}: a cross pattern needs a context [B,S,C], and no pack", id_);
  }
  for (const State* state : call.states) {
    if (state->parts() == 0 || state->find_rows(0) == nullptr) {
      throw UsageError("the state was made by another model");
    }
  }
  const bool fused =
      layout.fused && !rewrites_heads_ && call.pattern == Pattern::kCausalSelf && joined();
  Heads h = fused ? project_fused(x, call, layout) : project(x, call, layout);
  const auto tap = [&](const char* name, const Tensor& t) {
    if (!call.taps) return t;
    return call.tap(name, by_sequence(t, layout)).flatten(0, 1);
  };
  h.q = tap("q", h.q);
  h.k = tap("k", h.k);
  h.v = tap("v", h.v);
  const Tensor o = tap("o", after(x, mix(h, options(x, h)), h));
  for (size_t s = 0; s < call.states.size(); ++s) {
    call.states[s]->advance(layout.bounds[s + 1] - layout.bounds[s]);
  }
  return o.reshape({layout.batch, layout.length, view_.heads * view_.value_dim});
}

Tensor AttentionLayer::forward(const Tensor& x, Call& call) {
  // Caches are written in place: with states there is nothing to differentiate.
  const at::AutoGradMode mode(at::GradMode::is_enabled() && call.states.empty());
  if (call.layout) return linear(attended(x, call, *call.layout), o_, o_bias_);
  const Layout layout = layout_of(x, call);
  return linear(attended(x, call, layout), o_, o_bias_);
}

Tensor AttentionLayer::add_to(const Tensor& residual, const Tensor& x, Call& call) {
  if (!call.layout || !call.layout->fused) return residual + forward(x, call);
  return linear_plus(attended(x, call, *call.layout), o_, o_bias_, residual);
}

}  // namespace heed::mixer
