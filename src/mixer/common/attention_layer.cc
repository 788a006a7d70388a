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

// Rows as [B, T, ...]; T may be a context's.
Tensor shaped(const Tensor& rows, const Layout& layout) {
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

AttentionLayer::AttentionLayer(const std::string& id, const LayerConfig& config, unsigned own)
    : Layer(Params::Order::kAsMade),
      options_(id, config),
      eps_(config.norm_eps),
      rope_(own & kRotation ? nullptr : config.rope),
      id_(id),
      own_(own),
      index_(config.layer),
      hidden_(config.hidden) {
  view_.heads = options_.heads();
  view_.head_dim = view_.value_dim = options_.head_dim();
  if (own & kProjections) return;
  const bool grouped = config.kv_heads > 0 && config.heads == view_.heads && !(own & kAllHeads);
  view_.kv_heads = options_.integer("kv_heads", grouped ? config.kv_heads : view_.heads);
  if (!(own & kWindow)) view_.window = options_.integer("window", config.window, 0);
  if (view_.heads % view_.kv_heads != 0 || (own & kAllHeads && view_.heads != view_.kv_heads)) {
    throw UsageError("mixer {}: {} heads {} {} key/value heads", id, view_.heads,
                     own & kAllHeads ? "need as many, not" : "are no multiple of", view_.kv_heads);
  }
  const bool own_rotation = options_.has("rope_theta");
  RopeConfig rope;
  rope.base = options_.number("rope_theta", 0, 0);
  options_.describe("rope_theta", "a number of at least 0 (0: no rotation)", "the model's");
  if (own_rotation) {
    if (rope.base > 0 && view_.head_dim % 2 != 0) {
      throw UsageError("mixer {}: rotation needs an even head size, it is {}", id, view_.head_dim);
    }
    constexpr int64_t kContext = 4096;
    rope_ = rope.base > 0 ? std::make_shared<Rope>(
                                rope_frequencies(rope, view_.head_dim, kContext, 0), kContext)
                          : nullptr;
  } else if (rope_ && config.head_dim > 0 && view_.head_dim != config.head_dim) {
    throw UsageError(
        "mixer {}: {} heads of {} numbers do not fit the model's rotation, made for heads of {}; "
        "give the option rope_theta (0: no rotation)",
        id, view_.heads, view_.head_dim, config.head_dim);
  }
  set_window(view_.window);
  make_projections(config);
}

void AttentionLayer::make_projections(const LayerConfig& config) {
  const bool normed = options_.flag("qk_norm", config.qk_norm);
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
  make_output(q_size, config);
  if (normed) {
    params_.tensor(q_norm_, "q_norm.weight", vector(d, 1));
    params_.tensor(k_norm_, "k_norm.weight", vector(d, 1));
  }
}

void AttentionLayer::make_output(int64_t columns, const LayerConfig& config) {
  const at::TensorOptions tensors = config.drawn ? init_options() : config.tensors;
  params_.matrix(
      o_, "o_proj.weight",
      config.drawn ? init_projection(hidden_, columns) : at::empty({hidden_, columns}, tensors));
  if (!config.out_bias) return;
  params_.tensor(o_bias_, "o_proj.bias",
                 config.drawn ? at::full({hidden_}, 0.0, tensors) : at::empty({hidden_}, tensors));
}

void AttentionLayer::set_heads(const HeadsView& view, int64_t out_columns,
                               const LayerConfig& config) {
  view_ = view;
  set_window(view.window);
  make_output(out_columns, config);
}

void AttentionLayer::set_window(int64_t window) {
  view_.window = window;
  full_.assign(view_.kv_heads, HeadProgram{window, 0});
}

bool AttentionLayer::joined() const {
  if (q_.blocks && k_.blocks && v_.blocks) return true;
  return qkv_.defined() && q_.data.storage().is_alias_of(qkv_.data.storage()) &&
         k_.data.storage().is_alias_of(qkv_.data.storage()) &&
         v_.data.storage().is_alias_of(qkv_.data.storage());
}

void AttentionLayer::moved() {
  if (joined() && !q_.blocks) return;
  qkv_ = Weight{};
  qkv_bias_ = Tensor();
}

// A plan's programs within the layer's own window.
const std::vector<HeadProgram>& AttentionLayer::programs(const std::vector<HeadProgram>* asked,
                                                         std::vector<HeadProgram>& merged) const {
  if (asked == nullptr) return full_;
  if (asked->size() != full_.size()) {
    throw UsageError("layer {} has {} key/value heads, programs were given for {}", index_,
                     full_.size(), asked->size());
  }
  merged = full_;
  for (size_t h = 0; h < merged.size(); ++h) {
    const HeadProgram& p = (*asked)[h];
    merged[h].k_bits = p.k_bits, merged[h].v_bits = p.v_bits;
    merged[h].centre = p.centre;
    if (p.full()) {
      // A layer that slides by itself shows no first tokens for ever: none of them stay exact.
      if (p.in_few_bits() && view_.window == 0) merged[h].sinks = p.sinks;
      continue;
    }
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
  if (!takes(Pattern::kCausalSelf)) return Layer::state(request);
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
  const bool across = is_cross(call.pattern);
  const Tensor& from = across ? call.context : x;
  const auto heads = [&](const Tensor& in, const Weight& w, const Tensor& bias, int64_t count) {
    return linear(in, w, bias).view({in.size(0) * in.size(1), count, view_.head_dim});
  };
  Heads h{heads(x, q_, q_bias_, view_.heads),
          heads(from, k_, k_bias_, view_.kv_heads),
          heads(from, v_, v_bias_, view_.kv_heads),
          {},
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
  const Tensor in = x.reshape({rows, hidden_});
  const Tensor qkv = qkv_.defined()
                         ? linear(in, qkv_, qkv_bias_)
                         : linear_joint(in, {&q_, &k_, &v_}, {q_bias_, k_bias_, v_bias_});
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
  rule.relative_bias = options.relative_bias;
  rule.relative_scale = options.relative_scale;
  return rule;
}

// Window and sinks of the heads, as the operator takes them.
void set_programs(op::AttendOptions& options, const std::vector<HeadProgram>& programs) {
  for (const HeadProgram& p : programs) {
    if (p.dropped == Dropped::kGone && !p.in_few_bits()) continue;
    throw UsageError("a plan with {} runs, but has no gradients or probes",
                     p.in_few_bits() ? "keys or values in few bits" : "compensation tokens");
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
  const bool self = call.pattern == Pattern::kCausalSelf;
  const bool hooked = call.attention && heads() != nullptr;
  std::vector<HeadProgram> merged;
  const std::vector<HeadProgram>& heads = programs(call.programs, merged);
  const int64_t kv_heads = h.k.size(1);
  if (self && !hooked && !at::GradMode::is_enabled()) {
    // A latent head for all may have become one for each.
    const std::vector<HeadProgram> each(
        static_cast<int64_t>(heads.size()) == kv_heads ? 0 : kv_heads, heads.front());
    return attend_states(h.q, h.k, h.v, layout.bounds, {}, each.empty() ? heads : each,
                         rule_of(options), h.key_bias);
  }
  options.causal = is_causal(call.pattern);
  set_programs(options, heads);
  if (layout.pack) options.cu_seqlens_q = at::tensor(layout.bounds, at::kLong);
  const auto shape = [&](const Tensor& t) { return shaped(t, layout); };
  if (h.key_bias.defined()) {
    const int64_t group = h.q.size(1) / kv_heads;
    options.key_bias =
        shape(h.key_bias.expand({-1, -1, group}).reshape({h.key_bias.size(0), h.q.size(1)}));
  }
  const Tensor out =
      hooked ? (*call.attention)(call.layer, shape(h.q), shape(h.k), shape(h.v), options)
             : std::get<0>(op::attend(shape(h.q), shape(h.k), shape(h.v), options));
  return out.flatten(0, 1);
}

Tensor AttentionLayer::by_sequence(const Heads& h,
                                   const std::function<Tensor(const Sequences&)>& f) {
  const Layout& layout = h.layout;
  if (!layout.pack && h.call.states.empty()) {
    return f({0, layout.batch, layout.length}).flatten(0, 1);
  }
  std::vector<Tensor> outs;
  for (size_t s = 0; s + 1 < layout.bounds.size(); ++s) {
    const int64_t first = layout.bounds[s], length = layout.bounds[s + 1] - first;
    if (length > 0) outs.push_back(f({first, 1, length}).squeeze(0));
  }
  return outs.empty() ? h.q.new_zeros({0, h.q.size(1), h.v.size(2)}) : at::cat(outs);
}

Tensor AttentionLayer::visible_keys(const Heads& h) {
  const Layout& layout = h.layout;
  const int64_t rows = layout.batch * layout.length;
  std::vector<float> count(static_cast<size_t>(rows));
  for (size_t s = 0; s + 1 < layout.bounds.size(); ++s) {
    const int64_t begin = layout.bounds[s], length = layout.bounds[s + 1] - begin;
    const int64_t keys = is_cross(h.call.pattern) ? h.call.context.size(1)
                         : h.call.states.empty()  ? length
                                                  : h.call.states[s]->length() + length;
    for (int64_t n = 0; n < length; ++n) {
      const int64_t seen =
          is_causal(h.call.pattern) ? std::max<int64_t>(n + keys - length + 1, 0) : keys;
      count[static_cast<size_t>(begin + n)] = static_cast<float>(seen);
    }
  }
  return at::tensor(count, at::kFloat).to(h.q.device());
}

bool AttentionLayer::plain(const Heads& h) {
  return h.call.states.empty() && !h.call.attention && h.call.programs == nullptr;
}

void AttentionLayer::check(const Call& call, const Layout& layout) const {
  if (!takes(call.pattern)) {
    throw UsageError("mixer {}: {} attention is none of its patterns", id_,
                     pattern_name(call.pattern));
  }
  if (call.pattern != Pattern::kCausalSelf && !call.states.empty()) {
    throw UsageError("mixer {}: only causal self attention decodes with states", id_);
  }
  if (is_cross(call.pattern) && (!call.context.defined() || layout.pack)) {
    throw UsageError("mixer {}: a cross pattern needs a context [B,S,C], and no pack", id_);
  }
  for (const State* state : call.states) {
    if (state->parts() == 0 || state->find_rows(0) == nullptr) {
      throw UsageError("the state was made by another model");
    }
  }
}

// [B, T, columns], ready for the last projection.
Tensor AttentionLayer::attended(const Tensor& x, Call& call, const Layout& layout) {
  check(call, layout);
  const bool fused =
      layout.fused && !rewrites_heads_ && call.pattern == Pattern::kCausalSelf && joined();
  Heads h = fused ? project_fused(x, call, layout) : project(x, call, layout);
  const auto tap = [&](const char* name, const Tensor& t) {
    if (!call.taps) return t;
    return call.tap(name, shaped(t, layout)).flatten(0, 1);
  };
  h.q = tap("q", h.q);
  h.k = tap("k", h.k);
  h.v = tap("v", h.v);
  const Tensor o = tap("o", after(x, mix(h, options(x, h)), h));
  for (size_t s = 0; s < call.states.size(); ++s) {
    call.states[s]->advance(layout.bounds[s + 1] - layout.bounds[s]);
  }
  return o.reshape({layout.batch, layout.length, o_.in()});
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
