// See recurrent_layer.h.
#include "mixer/common/recurrent_layer.h"

#include <ATen/ATen.h>

#include "cache/attend_states.h"
#include "io/error.h"
#include "mixer/common/scan_core.h"
#include "op/attend_shape.h"
#include "op/mix.h"

namespace heed::mixer {

using at::Tensor;

RecurrentPass::RecurrentPass(const std::string& id, const StateSpec& spec, const Tensor& x,
                             Call& call)
    : spec_(spec),
      call_(call),
      batch_(x.size(0)),
      tokens_(x.size(1)),
      sequences_(call.sequences(x)),
      device_(x.device()) {
  if (decodes() && !causal()) {
    throw UsageError("mixer {}: only causal self attention decodes with states", id);
  }
  if (call.cu_seqlens.defined()) {
    offset_ = op::read_offsets(call.cu_seqlens, tokens_, "cu_seqlens");
  }
  for (const State* state : call.states) {
    bool same = state->parts() == spec.parts.size();
    for (size_t i = 0; same && i < spec.parts.size(); ++i) {
      same = state->spec().parts[i].index() == spec.parts[i].index();
    }
    if (!same) throw UsageError("mixer {} was given the state of another mixer", id);
  }
}

Tensor RecurrentPass::sequence(const Tensor& x, int64_t n) const {
  return offset_.empty() ? x.slice(0, n, n + 1) : x.slice(1, offset_[n], offset_[n + 1]);
}

Tensor RecurrentPass::joined(const std::vector<Tensor>& sequences, const Tensor& x) const {
  if (sequences.empty()) return x;
  return at::cat(sequences, offset_.empty() ? 0 : 1);
}

Tensor RecurrentPass::state(size_t part) const {
  const Tensor all = side_by_side(call_.states, part);
  const auto* fixed = std::get_if<FixedPart>(&spec_.parts[part]);
  const bool flat = fixed && !fixed->shape.empty() && fixed->shape[0] == 1;
  return flat ? all.flatten(0, 1) : all;
}

Tensor RecurrentPass::begin(size_t part, const Tensor& value) {
  if (!decodes()) {
    std::vector<int64_t> sizes = value.sizes().vec();
    sizes.insert(sizes.begin(), sequences_);
    return value.to(at::kFloat).expand(sizes);
  }
  for (State* state : call_.states) {
    if (state->length() == 0) state->tensor(part).copy_(value.detach());
  }
  return {};
}

// Sequences [first, first + count) have x's batch: their last `rows` inputs, then x; the states
// keep the last `rows` of that.
Tensor RecurrentPass::with_history(size_t part, const Tensor& x, int64_t rows, int64_t first,
                                   int64_t count) {
  if (!decodes()) return at::constant_pad_nd(x, {0, 0, rows, 0});
  if (count == 0) return x;
  const Tensor kept = side_by_side(
      std::span(call_.states).subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
      part);
  Tensor joined = at::cat({kept.to(x.scalar_type()), x}, 1);
  kept.copy_(joined.detach().slice(1, joined.size(1) - rows));
  return joined;
}

Tensor RecurrentPass::short_conv(size_t part, const Tensor& x, const Tensor& weight,
                                 const Tensor& bias) {
  using X = op::ShortConvTensors;
  X in;
  in.x = x;
  in.weight = weight;
  in.bias = bias;
  const op::ShortConvOptions options = {.ahead = 0, .silu = 1};
  const auto whole = [&](X& y, const Tensor& pack) { y = op::short_conv(y, options, pack); };
  if (!decodes()) {
    whole(in, call_.cu_seqlens);
    return in.out;
  }
  const at::NoGradGuard no_grad;
  const Tensor kept = state(part);
  in.initial_state = kept;
  if (is_step()) return op::short_conv_step(in, options);
  whole(in, call_.cu_seqlens);
  kept.copy_(in.final_state);
  return in.out;
}

Tensor RecurrentPass::previous(size_t part, const Tensor& x) {
  const auto shifted = [&](const Tensor& piece, int64_t first, int64_t count) {
    return with_history(part, piece, 1, first, count).slice(1, 0, piece.size(1));
  };
  if (offset_.empty()) return shifted(x, 0, batch_);
  std::vector<Tensor> parts;
  for (int64_t n = 0; n < sequences_; ++n) parts.push_back(shifted(sequence(x, n), n, 1));
  return joined(parts, x);
}

Tensor RecurrentPass::tokens(const HeadTokens& to, const Tensor& x, int64_t heads) {
  Tensor y = linear(x, to.weight, to.bias);
  if (to.taps.defined()) y = short_conv(to.history, y, to.taps);
  return mixer::heads(y, heads);
}

Tensor RecurrentPass::scan(size_t part, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                           op::ScanInputs in, const op::ScanOptions& options) {
  const Tensor q = call_.tap("q", q_in), k = call_.tap("k", k_in), v = call_.tap("v", v_in);
  const int64_t each = tokens_ == 0 ? 1 : q.size(1) / tokens_;
  in.cu_seqlens = call_.cu_seqlens;
  if (each > 1 && in.cu_seqlens.defined()) in.cu_seqlens = in.cu_seqlens.mul(each);
  if (!decodes()) return call_.tap("o", std::get<0>(op::scan(q, k, v, in, options)));
  const at::NoGradGuard no_grad;
  Tensor states = state(part);  // [N,H,K,V]
  if (is_step()) return call_.tap("o", scan_steps(q, k, v, in, options, states));
  in.initial_state = states;
  const auto [out, last] = op::scan(q, k, v, in, options);
  states.copy_(last);
  return call_.tap("o", out);
}

Tensor RecurrentPass::attend_window(size_t part, const Tensor& q, const Tensor& k,
                                    const Tensor& v) {
  const auto& spec = std::get<RowsPart>(spec_.parts[part]);
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
  if (!decodes()) {
    op::AttendOptions options;
    options.causal = true;
    options.scale = scale;
    options.window = spec.programs[0].window;
    options.cu_seqlens_q = call_.cu_seqlens;
    return std::get<0>(op::attend(q, k, v, options));
  }
  const at::NoGradGuard no_grad;
  std::vector<int64_t> bounds = offset_;
  if (bounds.empty()) {
    for (int64_t n = 0; n <= batch_; ++n) bounds.push_back(n * tokens_);
  }
  std::vector<Rows*> rows;
  for (State* state : call_.states) rows.push_back(&state->rows(part));
  const auto flat = [](const Tensor& t) { return t.flatten(0, 1).contiguous(); };
  return attend_states(flat(q), flat(k), flat(v), bounds, rows, spec.programs, scale).view_as(v);
}

// Tokens of its sequence before each token, int64 [B,T].
Tensor RecurrentPass::counted() const {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device_);
  std::vector<Tensor> parts;
  for (int64_t n = 0; n < sequences_; ++n) {
    const int64_t count = offset_.empty() ? tokens_ : offset_[n + 1] - offset_[n];
    parts.push_back(at::arange(past(n), past(n) + count, options).unsqueeze(0));
  }
  return joined(parts, at::zeros({batch_, tokens_}, options));
}

Tensor RecurrentPass::places(int64_t period) const { return counted().remainder(period); }

Tensor RecurrentPass::positions() const {
  return (call_.positions.defined() ? call_.positions.to(device_) : counted()).to(at::kFloat);
}

void RecurrentPass::finish() {
  for (size_t n = 0; n < call_.states.size(); ++n) {
    call_.states[n]->advance(offset_.empty() ? tokens_ : offset_[n + 1] - offset_[n]);
  }
}

Tensor heads(const Tensor& x, int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, x.size(2) / heads});
}

Tensor group_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const Tensor f = x.to(at::kFloat);
  const Tensor centred = f.sub(f.mean(-1, true));
  const Tensor unit = centred.mul(at::rsqrt(centred.square().mean(-1, true).add(eps)));
  return unit.flatten(2).mul(weight.to(at::kFloat)).add(bias.to(at::kFloat));
}

int64_t scan_flops(int64_t tokens, int64_t heads, int64_t key_dim, int64_t value_dim, bool delta) {
  constexpr int64_t kChunk = 64;
  const int64_t state = 4 * key_dim * value_dim;                  // read and write
  const int64_t inside = 2 * kChunk * (key_dim + value_dim) / 2;  // lower triangles
  return tokens * heads * (state + inside) * (delta ? 2 : 1);
}

// ----------------------------------------------------------------------------------------------
// the layer

namespace {

// A pack whose sequences have one token each.
bool single_tokens(const Tensor& x, const Call& call) {
  if (!call.cu_seqlens.defined() || call.states.empty() || x.size(0) != 1) return false;
  const auto tokens = static_cast<size_t>(x.size(1));
  if (tokens < 1 || call.states.size() != tokens || call.cu_seqlens.numel() != x.size(1) + 1 ||
      call.cu_seqlens.scalar_type() != at::kLong) {
    return false;
  }
  const int64_t* offset = call.cu_seqlens.const_data_ptr<int64_t>();
  for (size_t n = 0; n <= tokens; ++n) {
    if (offset[n] != static_cast<int64_t>(n)) return false;
  }
  return true;
}

}  // namespace

Tensor RecurrentLayer::forward(const Tensor& x, Call& call) {
  if (!takes(call.pattern)) {
    throw UsageError("mixer {}: {} attention is none of its patterns with these options", id_,
                     pattern_name(call.pattern));
  }
  const bool batch = single_tokens(x, call);
  const Tensor cu_seqlens = call.cu_seqlens, positions = call.positions;
  if (batch) {
    call.cu_seqlens = Tensor();
    if (positions.defined()) call.positions = positions.transpose(0, 1);
  }
  const Tensor in = batch ? x.transpose(0, 1) : x;
  RecurrentPass pass(id_, spec_, in, call);
  const Tensor y = mix(in, pass);
  pass.finish();
  call.cu_seqlens = cu_seqlens;
  call.positions = positions;
  return batch ? y.transpose(0, 1) : y;
}

StateSpec RecurrentLayer::state(const StateRequest& request) const {
  StateSpec spec = spec_;
  const at::TensorOptions options = params_.options();
  spec.device = options.device();
  for (StatePart& part : spec.parts) {
    if (auto* history = std::get_if<HistoryPart>(&part)) {
      history->dtype = c10::typeMetaToScalarType(options.dtype());
    } else if (auto* rows = std::get_if<RowsPart>(&part)) {
      rows->dtype = request.kv_dtype;
      rows->grouped = !spec.device.is_cpu();
    }
  }
  return spec;
}

int64_t RecurrentLayer::flops(int64_t tokens) const {
  int64_t sum = params_.flops(tokens) + tokens * token_flops_;
  for (const StatePart& part : spec_.parts) {
    const auto* scan = std::get_if<FixedPart>(&part);
    if (scan && scan->shape.size() == 4) {
      sum += scan_flops(tokens, scan->shape[1], scan->shape[2], scan->shape[3], corrects_);
    }
  }
  return sum;
}

size_t RecurrentLayer::fixed(const std::string& name, std::vector<int64_t> shape) {
  spec_.parts.push_back(FixedPart{name, std::move(shape)});
  return spec_.parts.size() - 1;
}

size_t RecurrentLayer::history(const std::string& name, int64_t width, int64_t most) {
  if (most == 0) return fixed(name, {0, width});  // a convolution of one tap; 0 would mean all
  spec_.parts.push_back(HistoryPart{name, width, most});
  return spec_.parts.size() - 1;
}

size_t RecurrentLayer::all_history(const std::string& name, int64_t width) {
  spec_.parts.push_back(HistoryPart{name, width, 0});
  return spec_.parts.size() - 1;
}

size_t RecurrentLayer::window(const std::string& name, int64_t heads, int64_t head_dim,
                              int64_t window) {
  RowsPart part;
  part.name = name;
  part.k_dim = part.v_dim = head_dim;
  part.programs.assign(static_cast<size_t>(heads), HeadProgram{window, 0});
  spec_.parts.push_back(std::move(part));
  return spec_.parts.size() - 1;
}

void RecurrentLayer::projection(HeadTokens& to, const std::string& name, int64_t width,
                                int64_t hidden, bool bias) {
  params_.matrix(to.weight, name + "_proj.weight", width, hidden);
  if (bias) params_.tensor(to.bias, name + "_proj.bias", at::zeros({width}, init_options()));
}

void RecurrentLayer::convolution(HeadTokens& to, const std::string& name, int64_t taps) {
  const int64_t width = to.weight.out();
  params_.tensor(to.taps, name + "_conv1d.weight", init_conv(width, taps));
  to.history = history("conv_" + name, width, taps - 1);
}

void RecurrentLayer::projections(QkvTokens& to, int64_t q, int64_t k, int64_t v, int64_t hidden,
                                 bool bias) {
  projection(to.q, "q", q, hidden, bias);
  projection(to.k, "k", k, hidden, bias);
  projection(to.v, "v", v, hidden, bias);
}

void RecurrentLayer::convolutions(QkvTokens& to, int64_t taps) {
  if (taps == 0) return;
  convolution(to.q, "q", taps);
  convolution(to.k, "k", taps);
  convolution(to.v, "v", taps);
}

}  // namespace heed::mixer
