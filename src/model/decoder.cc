// The decoder's computation; see decoder.h. Reading and writing of weights is in decoder_io.cc.
#include "model/decoder.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "cache/plan/kinds.h"
#include "io/progress.h"
#include "nn/norm.h"

namespace heed {

using mixer::Taps;

// ----------------------------------------------------------------------------------------------
// state

template <typename F>
void DecoderState::each(F&& f) const {
  for (size_t l = 0; l < layers_.size(); ++l) {
    f(*layers_[l].mixer, fmt::format("layers.{}.", l));
    if (layers_[l].channel) f(*layers_[l].channel, fmt::format("layers.{}.channel.", l));
  }
}

std::unique_ptr<DecoderState> DecoderState::fork() const {
  std::vector<Layer> layers;
  for (const Layer& layer : layers_) {
    layers.push_back({layer.mixer->fork(), layer.channel ? layer.channel->fork() : nullptr});
  }
  return std::make_unique<DecoderState>(std::move(layers));
}

int64_t DecoderState::bytes() const {
  int64_t total = 0;
  each([&](const State& state, const std::string&) { total += state.bytes(); });
  return total;
}

bool DecoderState::can_truncate() const {
  bool can = true;
  each([&](const State& state, const std::string&) { can &= state.spec().can_truncate(); });
  return can;
}

bool DecoderState::dense_prefill() const {
  bool dense = false;
  each([&](const State& state, const std::string&) { dense |= state.spec().dense_prefill(); });
  return dense && length() == 0;
}

void DecoderState::truncate(int64_t length) {
  each([&](const State& state, const std::string&) { state.check_truncate(length); });
  each([&](State& state, const std::string&) { state.truncate(length); });
}

void DecoderState::save(NamedTensors& out) const {
  each([&](const State& state, const std::string& prefix) { state.save(out, prefix); });
}

void DecoderState::load(const NamedTensors& in) {
  each([&](State& state, const std::string& prefix) { state.load(in, prefix); });
}

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

namespace {

void check_weights(const HeadProgram& program, const Params& params, int64_t layer) {
  for (const std::string& name : kind_of(program).weights(program)) {
    const bool there = std::any_of(params.begin(), params.end(),
                                   [&](const Parameter& p) { return p.name == name; });
    if (there) continue;
    throw UsageError("layer {} has no parameter \"{}\", which the plan's program \"{}\" needs",
                     layer, name, kind_of(program).id(program));
  }
}

}  // namespace

void Decoder::check_programs(const Programs& programs) const {
  bool fits = static_cast<int64_t>(programs.heads.size()) == config_.layers;
  for (int64_t l = 0; fits && l < config_.layers; ++l) {
    const mixer::HeadsView* heads = blocks_[l].mixer->heads();
    fits = heads == nullptr || static_cast<int64_t>(programs.heads[l].size()) == heads->kv_heads;
  }
  if (!fits) {
    throw UsageError(
        "the plan is for another model: it does not have {} layers of {} key/value heads",
        config_.layers, config_.kv_heads);
  }
  for (int64_t l = 0; l < config_.layers; ++l) {
    for (const HeadProgram& program : programs.heads[l]) {
      check_weights(program, blocks_[l].mixer->parameters(), l);
    }
  }
}

mixer::StateRequest Decoder::state_request(int64_t l, const StateOptions& options) const {
  mixer::StateRequest request;
  request.kv_dtype = options.kv_dtype;
  if (options.programs && blocks_[l].mixer->heads()) {
    request.programs = &options.programs->heads[l];
    request.dense_prefill = options.programs->dense_prefill;
  }
  return request;
}

int64_t Decoder::state_bytes(int64_t tokens, const StateOptions& options) const {
  if (options.programs) check_programs(*options.programs);
  int64_t total = 0;
  for (int64_t l = 0; l < config_.layers; ++l) {
    const mixer::StateRequest request = state_request(l, options);
    total += blocks_[l].mixer->state(request).bytes(tokens) +
             blocks_[l].channel->state(request).bytes(tokens);
  }
  return total;
}

std::unique_ptr<DecoderState> Decoder::make_state(const StateOptions& options) const {
  if (options.programs) check_programs(*options.programs);
  std::vector<DecoderState::Layer> layers;
  for (int64_t l = 0; l < config_.layers; ++l) {
    const mixer::StateRequest request = state_request(l, options);
    StateSpec channel = blocks_[l].channel->state(request);
    layers.push_back(
        {std::make_unique<State>(blocks_[l].mixer->state(request), options.pool),
         channel.empty() ? nullptr : std::make_unique<State>(std::move(channel), options.pool)});
  }
  return std::make_unique<DecoderState>(std::move(layers));
}

at::Tensor Decoder::embed(const at::Tensor& ids, const mixer::Layout& layout) const {
  at::Tensor x = at::embedding(embed_.data, ids.to(options_.device));
  if (!config_.learned_positions) return x;
  const at::Tensor rows = at::tensor(layout.positions, at::kLong).to(options_.device);
  return x + at::embedding(positions_, rows).view(x.sizes());
}

// ----------------------------------------------------------------------------------------------
// passes

namespace {

// One layer's states of all sequences.
void set_states(mixer::Call& call, const std::vector<DecoderState*>& states, int64_t l,
                bool channel) {
  call.states.clear();
  for (DecoderState* state : states) {
    State* own = channel ? state->channel(l) : &state->layer(l);
    if (own) call.states.push_back(own);
  }
}

}  // namespace

at::Tensor Decoder::hidden(const at::Tensor& ids, Pass& pass) const {
  check_ids(ids, config_.vocab);
  // Caches are written in place: with states there is nothing to differentiate.
  const at::AutoGradMode mode(at::GradMode::is_enabled() && pass.states.empty());
  std::vector<int64_t> past;
  for (const DecoderState* state : pass.states) past.push_back(state->length());
  mixer::Layout layout = mixer::Layout::of(ids, pass.cu_seqlens, past);
  if (layout.end > context_) {
    throw UsageError("a sequence of {} tokens is longer than the model's context of {}", layout.end,
                     context_);
  }
  if (pass.programs) check_programs(*pass.programs);
  const auto type = options_.dtype;
  layout.fused = !at::GradMode::is_enabled() && options_.device.is_cpu() &&
                 (type == at::kFloat || type == at::kBFloat16);
  const bool dense = pass.programs && pass.programs->dense_prefill && layout.length > 1;

  mixer::Shared shared;
  mixer::Call call, channel;
  if (layout.pack) call.cu_seqlens = channel.cu_seqlens = at::tensor(layout.bounds, at::kLong);
  call.layout = channel.layout = &layout;
  call.taps = channel.taps = pass.taps;
  call.aux = channel.aux = pass.aux;
  call.shared = channel.shared = &shared;
  if (pass.attention) call.attention = &pass.attention;

  at::Tensor x = tapped(pass.taps, -1, "embed", embed(ids, layout));
  for (int64_t l = 0; l < config_.layers; ++l) {
    const Block& b = blocks_[l];
    call.layer = channel.layer = l;
    set_states(call, pass.states, l, false);
    set_states(channel, pass.states, l, true);
    call.programs =
        pass.programs && !dense && b.mixer->heads() ? &pass.programs->heads[l] : nullptr;
    const at::Tensor normed = tapped(pass.taps, l, "ln1", normalise(x, b.in));
    if (!pass.taps) {
      x = b.mixer->add_to(x, normed, call);
      x = b.channel->add_to(x, normalise(x, b.mid), channel);
      continue;
    }
    x = x + tapped(pass.taps, l, "attn_out", b.mixer->forward(normed, call));
    x = tapped(pass.taps, l, "resid_mid", x);
    const at::Tensor normed2 = tapped(pass.taps, l, "ln2", normalise(x, b.mid));
    x = x + tapped(pass.taps, l, "mlp_out", b.channel->forward(normed2, channel));
    x = tapped(pass.taps, l, "resid_post", x);
  }
  return tapped(pass.taps, -1, "final_norm", normalise(x, final_norm_));
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
  const bool whole = state.dense_prefill();
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
