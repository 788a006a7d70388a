// See trunk.h.
#include "model/trunk.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "cache/plan/kinds.h"
#include "io/error.h"
#include "mixer/common/channel.h"
#include "mixer/common/mlp_layer.h"
#include "mixer/registry.h"

namespace heed {

at::Tensor tapped(mixer::Taps* taps, int64_t layer, const char* name, const at::Tensor& value) {
  if (!taps) return value;
  const std::string full = layer < 0 ? name : fmt::format("{}.{}", layer, name);
  return taps->wants(full) ? taps->tap(full, value) : value;
}

namespace {

bool begins_with_one_of(const std::string& name, std::initializer_list<const char*> prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const char* prefix) { return name.rfind(prefix, 0) == 0; });
}

// A parameter of a layer's mixer: kept projections keep their names, new ones are the mixer's.
std::string mixer_name(int64_t layer, const std::string& name) {
  const bool kept =
      begins_with_one_of(name, {"q_proj.", "k_proj.", "v_proj.", "o_proj.", "q_norm.", "k_norm."});
  return fmt::format("model.layers.{}.{}.{}", layer, kept ? "self_attn" : "mixer", name);
}

// The same of its channel layer: an MLP's, or those of what a mixer brings along.
std::string channel_name(int64_t layer, const std::string& name) {
  const bool mlp = begins_with_one_of(name, {"gate_proj.", "up_proj.", "down_proj."});
  return fmt::format("model.layers.{}.{}.{}", layer, mlp ? "mlp" : "mixer.channel", name);
}

void check_weights(const HeadProgram& program, const Params& params, int64_t layer) {
  for (const std::string& name : kind_of(program).weights(program)) {
    const bool there = std::any_of(params.begin(), params.end(),
                                   [&](const Parameter& p) { return p.name == name; });
    if (there) continue;
    throw UsageError("layer {} has no parameter \"{}\", which the plan's program \"{}\" needs",
                     layer, name, kind_of(program).id(program));
  }
}

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

Trunk::Trunk(const ModelConfig& c, const at::TensorOptions& tensors, int64_t context, int64_t asked)
    : kv_heads_(c.kv_heads) {
  const auto norm = [&] {
    const auto vector = [&] { return at::empty({c.hidden}, tensors); };
    return Norm{vector(), c.layer_norm ? vector() : at::Tensor(), c.norm_eps, c.layer_norm};
  };
  std::shared_ptr<const Rope> rope;  // null: learned positions
  if (!c.learned_positions) {
    rope = std::make_shared<Rope>(rope_frequencies(c.rope, c.head_dim, c.max_position, asked),
                                  context);
  }
  final_norm_ = norm();
  mixer::LayerConfig layer;
  layer.hidden = c.hidden;
  layer.heads = c.heads;
  layer.kv_heads = c.kv_heads;
  layer.head_dim = c.head_dim;
  layer.rope = rope;
  layer.norm_eps = c.norm_eps;
  layer.qk_norm = c.qk_norm;
  layer.qkv_bias = c.qkv_bias;
  layer.out_bias = c.out_bias;
  layer.tensors = tensors;
  layer.drawn = false;
  const mixer::MlpConfig mlp{c.hidden,    c.intermediate, c.activation,
                             c.gated_mlp, c.mlp_bias,     tensors};
  for (int64_t l = 0; l < c.layers; ++l) {
    Block b{norm(), norm(), nullptr, nullptr};
    const auto other = c.mixers.find(l);
    layer.layer = l;
    layer.window = c.windows[l];
    layer.options = other == c.mixers.end() ? Json::object() : other->second.options;
    const std::string id = other == c.mixers.end() ? "softmax" : other->second.id;
    b.mixer = mixer::make_layer(id, layer);
    const mixer::HeadsView* heads = b.mixer->heads();
    if (heads && (heads->heads != c.heads || heads->kv_heads != c.kv_heads)) {
      throw UsageError(
          "layer {} has {} query and {} key/value heads, the model {} and {}: plans and probes "
          "need "
          "the same number in every layer",
          l, heads->heads, heads->kv_heads, c.heads, c.kv_heads);
    }
    for (auto& [name, tensor] : b.mixer->parameters()) tensor = tensor.to(tensors);
    b.channel = mixer::make_channel(id, layer);
    if (!b.channel) b.channel = std::make_unique<mixer::MlpLayer>(mlp);
    for (auto& [name, tensor] : b.channel->parameters()) tensor = tensor.to(tensors);
    blocks_.push_back(std::move(b));
    softmax_.push_back(id == "softmax");
  }
}

void Trunk::visit(const VisitParameter& visit) {
  const auto optional = [&](const std::string& name, at::Tensor& t) {
    if (t.defined()) visit(name, t);
  };
  for (size_t l = 0; l < blocks_.size(); ++l) {
    Block& b = blocks_[l];
    const std::string p = fmt::format("model.layers.{}.", l);
    visit(p + "input_layernorm.weight", b.in.weight);
    optional(p + "input_layernorm.bias", b.in.bias);
    for (auto& [name, tensor] : b.mixer->parameters()) {
      visit(mixer_name(static_cast<int64_t>(l), name), tensor);
    }
    visit(p + "post_attention_layernorm.weight", b.mid.weight);
    optional(p + "post_attention_layernorm.bias", b.mid.bias);
    for (auto& [name, tensor] : b.channel->parameters()) {
      visit(channel_name(static_cast<int64_t>(l), name), tensor);
    }
  }
  visit("model.norm.weight", final_norm_.weight);
  optional("model.norm.bias", final_norm_.bias);
}

void Trunk::visit_matrices(const std::function<void(const std::string&, Weight&)>& visit) {
  const auto matrices = [&](const Params& params, const auto& named) {
    for (const Parameter& p : params) {
      for (Weight* w : params.matrices()) {
        if (&w->data == &p.value) visit(named(p.name), *w);
      }
    }
  };
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const auto l = static_cast<int64_t>(i);
    if (softmax_[i]) {
      matrices(blocks_[i].mixer->parameters(), [&](const auto& n) { return mixer_name(l, n); });
    }
    if (dynamic_cast<mixer::MlpLayer*>(blocks_[i].channel.get())) {
      matrices(blocks_[i].channel->parameters(), [&](const auto& n) { return channel_name(l, n); });
    }
  }
}

void Trunk::moved() {
  for (Block& b : blocks_) {
    b.mixer->moved();
    b.channel->moved();
  }
}

void Trunk::check_programs(const Programs& programs) const {
  bool fits = static_cast<int64_t>(programs.heads.size()) == layers();
  for (int64_t l = 0; fits && l < layers(); ++l) {
    const mixer::HeadsView* heads = blocks_[l].mixer->heads();
    fits = heads == nullptr || static_cast<int64_t>(programs.heads[l].size()) == heads->kv_heads;
  }
  if (!fits) {
    throw UsageError(
        "the plan is for another model: it does not have {} layers of {} key/value heads", layers(),
        kv_heads_);
  }
  for (int64_t l = 0; l < layers(); ++l) {
    for (const HeadProgram& program : programs.heads[l]) {
      check_weights(program, blocks_[l].mixer->parameters(), l);
    }
  }
}

mixer::StateRequest Trunk::state_request(int64_t l, const StateOptions& options) const {
  mixer::StateRequest request;
  request.kv_dtype = options.kv_dtype;
  if (options.programs && blocks_[l].mixer->heads()) {
    request.programs = &options.programs->heads[l];
    request.dense_prefill = options.programs->dense_prefill;
  }
  return request;
}

int64_t Trunk::state_bytes(int64_t tokens, const StateOptions& options) const {
  if (options.programs) check_programs(*options.programs);
  int64_t total = 0;
  for (int64_t l = 0; l < layers(); ++l) {
    const mixer::StateRequest request = state_request(l, options);
    total += blocks_[l].mixer->state(request).bytes(tokens) +
             blocks_[l].channel->state(request).bytes(tokens);
  }
  return total;
}

std::unique_ptr<DecoderState> Trunk::make_state(const StateOptions& options) const {
  if (options.programs) check_programs(*options.programs);
  std::vector<DecoderState::Layer> states;
  for (int64_t l = 0; l < layers(); ++l) {
    const mixer::StateRequest request = state_request(l, options);
    StateSpec channel = blocks_[l].channel->state(request);
    states.push_back(
        {std::make_unique<State>(blocks_[l].mixer->state(request), options.pool),
         channel.empty() ? nullptr : std::make_unique<State>(std::move(channel), options.pool)});
  }
  return std::make_unique<DecoderState>(std::move(states));
}

at::Tensor Trunk::forward(at::Tensor x, mixer::Layout& layout, Pass& pass) const {
  if (pass.programs) check_programs(*pass.programs);
  layout.fused = !at::GradMode::is_enabled() && x.is_cpu() &&
                 (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
  const bool dense = pass.programs && pass.programs->dense_prefill && layout.length > 1;

  mixer::Shared shared;
  mixer::Call call, channel;
  if (layout.pack) call.cu_seqlens = channel.cu_seqlens = at::tensor(layout.bounds, at::kLong);
  call.layout = channel.layout = &layout;
  call.pattern = channel.pattern = pass.pattern;
  call.grid = channel.grid = pass.grid;
  call.taps = channel.taps = pass.taps;
  call.aux = channel.aux = pass.aux;
  call.shared = channel.shared = &shared;
  if (pass.attention) call.attention = &pass.attention;

  for (int64_t l = 0; l < layers(); ++l) {
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

}  // namespace heed
