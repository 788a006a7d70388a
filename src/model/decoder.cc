// The decoder's computation; see decoder.h. Reading and writing of weights is in decoder_io.cc.
#include "model/decoder.h"

#include <ATen/ATen.h>

#include "cache/attend_states.h"
#include "io/progress.h"
#include "nn/rows.h"

namespace heed {

using mixer::Taps;

// ----------------------------------------------------------------------------------------------
// state

std::unique_ptr<DecoderState> DecoderState::fork() const {
  std::vector<std::unique_ptr<State>> layers;
  for (const auto& layer : layers_) layers.push_back(layer->fork());
  return std::make_unique<DecoderState>(std::move(layers));
}

int64_t DecoderState::bytes() const {
  int64_t total = 0;
  for (const auto& layer : layers_) total += layer->bytes();
  return total;
}

void DecoderState::truncate(int64_t length) {
  // On copies first, so that a layer that cannot go back leaves the others as they were.
  auto copy = fork();
  for (auto& layer : copy->layers_) layer->truncate(length);
  layers_ = std::move(copy->layers_);
}

void DecoderState::save(NamedTensors& out) const {
  for (size_t l = 0; l < layers_.size(); ++l) layers_[l]->save(out, fmt::format("layers.{}.", l));
}

void DecoderState::load(const NamedTensors& in) {
  for (size_t l = 0; l < layers_.size(); ++l) layers_[l]->load(in, fmt::format("layers.{}.", l));
}

// ----------------------------------------------------------------------------------------------
// layout

// Where the rows of a pass stand.
struct Decoder::Layout {
  int64_t batch = 0, length = 0;  // of ids
  bool pack = false;
  std::vector<int64_t> bounds;     // of the sequences among the batch * length rows
  std::vector<int64_t> past;       // tokens before each sequence's first row
  std::vector<int64_t> positions;  // of every row
  int64_t end = 0;                 // largest position + 1
  bool fused = false;              // CPU without gradients: the fused loops
  at::Tensor cos, sin;             // [rows, D/2] for the module path
};

namespace {

at::Tensor tapped(Taps* taps, int64_t layer, const char* name, const at::Tensor& value) {
  if (!taps) return value;
  const std::string full = layer < 0 ? name : fmt::format("{}.{}", layer, name);
  return taps->wants(full) ? taps->tap(full, value) : value;
}

void check_ids(const at::Tensor& ids, int64_t vocab) {
  if (ids.scalar_type() != at::kLong || ids.dim() != 2) {
    throw UsageError("token ids must be int64 [batch, length]");
  }
  if (ids.numel() == 0) return;
  const auto [low, high] = at::aminmax(ids);
  const int64_t bad = low.item<int64_t>() < 0 ? low.item<int64_t>() : high.item<int64_t>();
  if (bad < 0 || bad >= vocab) {
    throw UsageError("token id {} is outside the vocabulary (0 to {})", bad, vocab - 1);
  }
}

}  // namespace

// ----------------------------------------------------------------------------------------------
// pieces

const RopeTables& Decoder::rope(int64_t positions) const {
  if (!rope_.cos.defined() || rope_.cos.size(0) < positions) {
    const int64_t have = rope_.cos.defined() ? rope_.cos.size(0) : 0;
    const int64_t size = std::max(positions, std::min(context_, std::max<int64_t>(2 * have, 1024)));
    rope_ = rope_tables(frequencies_, size, options_.device);
  }
  return rope_;
}

std::vector<HeadProgram> Decoder::programs_of(int64_t l, const Programs* programs) const {
  std::vector<HeadProgram> out(config_.kv_heads, HeadProgram{config_.windows[l], 0});
  if (!programs) return out;
  if (static_cast<int64_t>(programs->heads.size()) != config_.layers ||
      static_cast<int64_t>(programs->heads[l].size()) != config_.kv_heads) {
    throw UsageError(
        "the plan is for another model: it does not have {} layers of {} key/value heads",
        config_.layers, config_.kv_heads);
  }
  for (int64_t h = 0; h < config_.kv_heads; ++h) {
    const HeadProgram& p = programs->heads[l][h];
    if (p.full()) continue;
    out[h].window = config_.windows[l] > 0 ? std::min(config_.windows[l], p.window) : p.window;
    out[h].sinks = p.sinks;
    if (p.dropped != Dropped::kGone && config_.windows[l] > 0) {
      throw UsageError(
          "layer {} sees {} tokens by itself: a mean of all that a head dropped would show it "
          "more; leave \"comp\" out of its programs",
          l, config_.windows[l]);
    }
    out[h].dropped = p.dropped;
  }
  return out;
}

std::unique_ptr<DecoderState> Decoder::make_state(const StateOptions& options) const {
  std::vector<std::unique_ptr<State>> layers;
  for (int64_t l = 0; l < config_.layers; ++l) {
    if (blocks_[l].mixer) {
      layers.push_back(blocks_[l].mixer->make_state());
      continue;
    }
    KvOptions kv;
    kv.head_dim = config_.head_dim;
    kv.dtype = options.kv_dtype;
    kv.device = options_.device;
    kv.grouped = !options_.device.is_cpu();
    kv.dense_prefill = options.programs && options.programs->dense_prefill;
    layers.push_back(std::make_unique<KvState>(programs_of(l, options.programs), kv));
  }
  return std::make_unique<DecoderState>(std::move(layers));
}

at::Tensor Decoder::embed(const at::Tensor& ids, const Layout& layout) const {
  at::Tensor x = at::embedding(embed_.data, ids.to(options_.device));
  if (!config_.learned_positions) return x;
  const at::Tensor rows = at::tensor(layout.positions, at::kLong).to(options_.device);
  return x + at::embedding(positions_, rows).view(x.sizes());
}

at::Tensor Decoder::norm(const at::Tensor& x, const Norm& n) const {
  if (config_.layer_norm)
    return at::layer_norm(x, {x.size(-1)}, n.weight, n.bias, config_.norm_eps);
  if (!at::GradMode::is_enabled() && x.is_cpu() && x.is_contiguous() &&
      (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16)) {
    return rms_norm_rows(x, n.weight, config_.norm_eps);
  }
  // The normalised vector is rounded to x's type before the product, as transformers does.
  const auto wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::rms_norm(x.to(wide), {x.size(-1)}, {}, config_.norm_eps).to(x.scalar_type()) *
         n.weight;
}

at::Tensor Decoder::mlp(const Block& b, const at::Tensor& x) const {
  if (!config_.gated_mlp) {
    return linear(linear_activation(x, b.up, b.up_bias, config_.activation), b.down, b.down_bias);
  }
  const at::Tensor gate = linear_activation(x, b.gate, b.gate_bias, config_.activation);
  return linear(linear_times(x, b.up, b.up_bias, gate), b.down, b.down_bias);
}

// q [rows, Hq, D], k and v [rows, Hk, D] over caches, or without any; returns [rows, Hq, D].
at::Tensor Decoder::attend(int64_t l, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const Layout& layout, Pass& pass) const {
  const double scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  if (!pass.states.empty()) {
    std::vector<KvState*> states;
    for (DecoderState* state : pass.states) {
      auto* kv = dynamic_cast<KvState*>(&state->layer(l));
      if (!kv) throw UsageError("the state was made by another model");
      states.push_back(kv);
    }
    return attend_states(q, k, v, layout.bounds, states, {}, scale);
  }
  const bool dense = pass.programs && pass.programs->dense_prefill && layout.length > 1;
  const auto programs = programs_of(l, dense ? nullptr : pass.programs);
  if (!pass.attention && !at::GradMode::is_enabled()) {
    return attend_states(q, k, v, layout.bounds, {}, programs, scale);
  }
  for (const HeadProgram& p : programs) {
    if (p.dropped == Dropped::kGone) continue;
    throw UsageError("a plan with compensation tokens runs, but has no gradients or probes");
  }
  op::AttendOptions options;
  options.causal = true;
  options.scale = scale;
  const bool one = std::all_of(programs.begin(), programs.end(),
                               [&](const HeadProgram& p) { return p == programs[0]; });
  if (one) {
    options.window = programs[0].window;
    options.sinks = programs[0].sinks;
  } else {
    std::vector<int64_t> windows, sinks;
    for (const HeadProgram& p : programs) {
      windows.push_back(p.window);
      sinks.push_back(p.sinks);
    }
    options.head_window = at::tensor(windows, at::kLong);
    options.head_sinks = at::tensor(sinks, at::kLong);
  }
  if (layout.pack) options.cu_seqlens_q = at::tensor(layout.bounds, at::kLong);
  const auto shaped = [&](const at::Tensor& t) {
    return t.unflatten(0, {layout.batch, layout.length});
  };
  const at::Tensor out = pass.attention
                             ? pass.attention(l, shaped(q), shaped(k), shaped(v), options)
                             : std::get<0>(op::attend(shaped(q), shaped(k), shaped(v), options));
  return out.flatten(0, 1);
}

at::Tensor Decoder::mix_other(int64_t l, const at::Tensor& x, const Layout& layout,
                              Pass& pass) const {
  mixer::Call call;
  if (layout.pack) call.cu_seqlens = at::tensor(layout.bounds, at::kLong);
  for (DecoderState* state : pass.states) call.states.push_back(&state->layer(l));
  call.taps = pass.taps;
  return blocks_[l].mixer->forward(x, call);
}

// Softmax attention as ordinary operators: differentiable, any device.
at::Tensor Decoder::attention_module(int64_t l, const at::Tensor& x, const Layout& layout,
                                     Pass& pass) const {
  const Block& b = blocks_[l];
  const int64_t rows = layout.batch * layout.length, d = config_.head_dim;
  at::Tensor q = linear(x, b.q, b.q_bias).view({rows, config_.heads, d});
  at::Tensor k = linear(x, b.k, b.k_bias).view({rows, config_.kv_heads, d});
  at::Tensor v = linear(x, b.v, b.v_bias).view({rows, config_.kv_heads, d});
  if (config_.qk_norm) {
    q = norm(q, {b.q_norm, {}});
    k = norm(k, {b.k_norm, {}});
  }
  if (!config_.learned_positions) {
    q = rotate(q, layout.cos, layout.sin);
    k = rotate(k, layout.cos, layout.sin);
  }
  const auto tap = [&](const char* name, const at::Tensor& t) {
    if (!pass.taps) return t;
    return tapped(pass.taps, l, name, t.unflatten(0, {layout.batch, layout.length})).flatten(0, 1);
  };
  q = tap("q", q);
  k = tap("k", k);
  v = tap("v", v);
  const at::Tensor o = tap("o", attend(l, q, k, v, layout, pass));
  return linear(o.reshape({layout.batch, layout.length, config_.q_size()}), b.o, b.o_bias);
}

// The same through one product for q, k and v and in-place loops; returns residual + attention.
at::Tensor Decoder::attention_fused(int64_t l, const at::Tensor& x, const at::Tensor& residual,
                                    const Layout& layout, Pass& pass) const {
  const Block& b = blocks_[l];
  const int64_t rows = layout.batch * layout.length, d = config_.head_dim;
  const at::Tensor qkv = linear(x.view({rows, config_.hidden}), b.qkv, b.qkv_bias);
  if (!config_.learned_positions || config_.qk_norm) {
    normalise_and_rotate(qkv, config_.heads, config_.kv_heads, d, layout.positions, rope_.cos,
                         rope_.sin, b.q_norm, b.k_norm, config_.norm_eps);
  }
  const auto heads = [&](int64_t first, int64_t count) {
    return qkv.narrow(1, first * d, count * d).unflatten(1, {count, d});
  };
  const auto tap = [&](const char* name, const at::Tensor& t) {
    if (!pass.taps) return t;
    return tapped(pass.taps, l, name, t.unflatten(0, {layout.batch, layout.length})).flatten(0, 1);
  };
  const at::Tensor q = tap("q", heads(0, config_.heads));
  const at::Tensor k = tap("k", heads(config_.heads, config_.kv_heads));
  const at::Tensor v = tap("v", heads(config_.heads + config_.kv_heads, config_.kv_heads));
  const at::Tensor o = tap("o", attend(l, q, k, v, layout, pass));
  const at::Tensor joined = o.reshape({layout.batch, layout.length, config_.q_size()});
  if (pass.taps) {
    return residual + tapped(pass.taps, l, "attn_out", linear(joined, b.o, b.o_bias));
  }
  return linear_plus(joined, b.o, b.o_bias, residual);
}

// ----------------------------------------------------------------------------------------------
// passes

at::Tensor Decoder::hidden(const at::Tensor& ids, Pass& pass) const {
  check_ids(ids, config_.vocab);
  // Caches are written in place: with states there is nothing to differentiate.
  const at::AutoGradMode mode(at::GradMode::is_enabled() && pass.states.empty());
  Layout layout;
  layout.batch = ids.size(0);
  layout.length = ids.size(1);
  layout.pack = !pass.cu_seqlens.empty();
  if (layout.pack) {
    layout.bounds = pass.cu_seqlens;
    if (layout.batch != 1 || layout.bounds.front() != 0 || layout.bounds.back() != layout.length ||
        !std::is_sorted(layout.bounds.begin(), layout.bounds.end())) {
      throw UsageError("cu_seqlens must rise from 0 to the {} tokens of a pack with batch 1",
                       layout.length);
    }
  } else {
    for (int64_t s = 0; s <= layout.batch; ++s) layout.bounds.push_back(s * layout.length);
  }
  const int64_t sequences = static_cast<int64_t>(layout.bounds.size()) - 1;
  if (!pass.states.empty() && static_cast<int64_t>(pass.states.size()) != sequences) {
    throw UsageError("{} states were given for {} sequences", pass.states.size(), sequences);
  }
  layout.positions.resize(layout.batch * layout.length);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t past = pass.states.empty() ? 0 : pass.states[s]->length();
    const int64_t begin = layout.bounds[s], count = layout.bounds[s + 1] - begin;
    layout.past.push_back(past);
    for (int64_t n = 0; n < count; ++n) layout.positions[begin + n] = past + n;
    layout.end = std::max(layout.end, past + count);
  }
  if (layout.end > context_) {
    throw UsageError("a sequence of {} tokens is longer than the model's context of {}", layout.end,
                     context_);
  }
  const auto type = options_.dtype;
  layout.fused = !at::GradMode::is_enabled() && options_.device.is_cpu() &&
                 (type == at::kFloat || type == at::kBFloat16);
  if (!config_.learned_positions) {
    const RopeTables& tables = rope(layout.end);
    if (!layout.fused) {
      const at::Tensor rows = at::tensor(layout.positions, at::kLong).to(options_.device);
      layout.cos = tables.cos.index_select(0, rows);
      layout.sin = tables.sin.index_select(0, rows);
    }
  }

  at::Tensor x = tapped(pass.taps, -1, "embed", embed(ids, layout));
  for (int64_t l = 0; l < config_.layers; ++l) {
    const Block& b = blocks_[l];
    const at::Tensor normed = tapped(pass.taps, l, "ln1", norm(x, b.ln1));
    if (b.mixer) {
      x = x + tapped(pass.taps, l, "attn_out", mix_other(l, normed, layout, pass));
    } else if (layout.fused) {
      x = attention_fused(l, normed, x, layout, pass);
    } else {
      x = x + tapped(pass.taps, l, "attn_out", attention_module(l, normed, layout, pass));
    }
    x = tapped(pass.taps, l, "resid_mid", x);
    const at::Tensor normed2 = tapped(pass.taps, l, "ln2", norm(x, b.ln2));
    if (layout.fused && !pass.taps) {
      const at::Tensor up =
          config_.gated_mlp
              ? linear_times(normed2, b.up, b.up_bias,
                             linear_activation(normed2, b.gate, b.gate_bias, config_.activation))
              : linear_activation(normed2, b.up, b.up_bias, config_.activation);
      x = linear_plus(up, b.down, b.down_bias, x);
    } else {
      x = x + tapped(pass.taps, l, "mlp_out", mlp(b, normed2));
      x = tapped(pass.taps, l, "resid_post", x);
    }
  }
  return tapped(pass.taps, -1, "final_norm", norm(x, final_norm_));
}

at::Tensor Decoder::logits(const at::Tensor& hidden, Taps* taps) const {
  return tapped(taps, -1, "logits", linear(hidden, head()));
}

at::Tensor Decoder::forward(const at::Tensor& ids, Pass& pass) const {
  return logits(hidden(ids, pass), pass.taps);
}

at::Tensor Decoder::prefill(std::span<const int64_t> ids, DecoderState& state, int64_t chunk,
                            Taps* taps) const {
  if (ids.empty()) throw UsageError("there is no token to feed to the model");
  // A dense prefill sees the whole prompt in one pass.
  const auto* kv = dynamic_cast<const KvState*>(&state.layer(0));
  const bool whole = kv && kv->options().dense_prefill && state.length() == 0;
  const int64_t size = whole ? static_cast<int64_t>(ids.size()) : std::max<int64_t>(chunk, 1);
  at::Tensor last;
  for (int64_t begin = 0; begin < static_cast<int64_t>(ids.size()); begin += size) {
    check_interrupted();
    const int64_t count = std::min<int64_t>(size, static_cast<int64_t>(ids.size()) - begin);
    const at::Tensor part =
        at::tensor(at::ArrayRef<int64_t>(ids.data() + begin, static_cast<size_t>(count)), at::kLong)
            .unsqueeze(0);
    Pass pass;
    pass.states = {&state};
    pass.taps = taps;
    last = hidden(part, pass).narrow(1, count - 1, 1);
  }
  return last;
}

at::Tensor Decoder::step(std::span<const int64_t> ids,
                         std::span<DecoderState* const> states) const {
  Pass pass;
  pass.states.assign(states.begin(), states.end());
  pass.cu_seqlens.resize(ids.size() + 1);
  for (size_t i = 0; i <= ids.size(); ++i) pass.cu_seqlens[i] = static_cast<int64_t>(i);
  return hidden(at::tensor(at::ArrayRef<int64_t>(ids.data(), ids.size()), at::kLong).unsqueeze(0),
                pass);
}

}  // namespace heed
