// See recurrent_layer.h.
#include "mixer/common/recurrent_layer.h"

#include <ATen/ATen.h>

#include "io/error.h"
#include "op/attend_shape.h"

namespace heed::mixer {

using at::Tensor;

RecurrentPass::RecurrentPass(const std::string& id, const StateSpec& spec, const Tensor& x,
                             Call& call)
    : call_(call),
      batch_(x.size(0)),
      tokens_(x.size(1)),
      sequences_(call.sequences(x)),
      device_(x.device()) {
  if (call.pattern != Pattern::kCausalSelf) {
    throw UsageError("mixer {} is causal self attention only", id);
  }
  if (call.cu_seqlens.defined()) {
    offset_ = op::read_offsets(call.cu_seqlens, tokens_, "cu_seqlens");
  }
  for (const State* state : call.states) {
    if (state->parts() != spec.parts.size() || (state->parts() > 0 && state->find_rows(0))) {
      throw UsageError("mixer {} was given the state of another mixer", id);
    }
  }
}

// Sequences [first, first + count) have x's batch: their last `rows` inputs, then x; the states
// keep the last `rows` of that.
Tensor RecurrentPass::with_history(size_t part, const Tensor& x, int64_t rows, int64_t first,
                                   int64_t count) {
  if (call_.states.empty()) return at::constant_pad_nd(x, {0, 0, rows, 0});
  if (count == 0) return x;
  const Tensor kept = side_by_side(
      std::span(call_.states).subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
      part);
  Tensor joined = at::cat({kept.to(x.scalar_type()), x}, 1);
  kept.copy_(joined.detach().slice(1, joined.size(1) - rows));
  return joined;
}

template <typename F>
Tensor RecurrentPass::over_parts(const Tensor& x, F&& f) {
  if (offset_.empty()) return f(x, int64_t{0}, batch_);
  std::vector<Tensor> parts;
  for (int64_t n = 0; n < sequences_; ++n) {
    parts.push_back(f(x.slice(1, offset_[n], offset_[n + 1]), n, int64_t{1}));
  }
  return parts.empty() ? x : at::cat(parts, 1);
}

Tensor RecurrentPass::short_conv(size_t part, const Tensor& x, const Tensor& weight,
                                 const Tensor& bias) {
  return over_parts(x, [&](const Tensor& piece, int64_t first, int64_t count) {
    return heed::short_conv(with_history(part, piece, weight.size(1) - 1, first, count), weight,
                            bias);
  });
}

Tensor RecurrentPass::previous(size_t part, const Tensor& x) {
  return over_parts(x, [&](const Tensor& piece, int64_t first, int64_t count) {
    return with_history(part, piece, 1, first, count).slice(1, 0, piece.size(1));
  });
}

Tensor RecurrentPass::tokens(const HeadTokens& to, const Tensor& x, int64_t heads) {
  Tensor y = linear(x, to.weight);
  if (to.taps.defined()) y = at::silu(short_conv(to.history, y, to.taps));
  return mixer::heads(y, heads);
}

Tensor RecurrentPass::scan(size_t part, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                           op::ScanInputs in, const op::ScanOptions& options) {
  const Tensor q = call_.tap("q", q_in), k = call_.tap("k", k_in), v = call_.tap("v", v_in);
  in.cu_seqlens = call_.cu_seqlens;
  if (call_.states.empty()) return call_.tap("o", std::get<0>(op::scan(q, k, v, in, options)));
  const at::NoGradGuard no_grad;
  Tensor states = side_by_side(call_.states, part).flatten(0, 1);  // [N,H,K,V]
  if (tokens_ == 1 && offset_.empty()) {
    return call_.tap("o", op::scan_step(q, k, v, in, options, states));
  }
  in.initial_state = states;
  const auto [out, last] = op::scan(q, k, v, in, options);
  states.copy_(last);
  return call_.tap("o", out);
}

Tensor RecurrentPass::positions() const {
  if (call_.positions.defined()) return call_.positions.to(device_, at::kFloat);
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device_);
  const auto start = [&](int64_t n) {
    return call_.states.empty() ? 0 : call_.states[n]->length();
  };
  std::vector<Tensor> parts;
  if (offset_.empty()) {
    for (int64_t n = 0; n < batch_; ++n) {
      parts.push_back(at::arange(start(n), start(n) + tokens_, options));
    }
    return parts.empty() ? at::zeros({0, tokens_}, options) : at::stack(parts);
  }
  for (int64_t n = 0; n < sequences_; ++n) {
    parts.push_back(at::arange(start(n), start(n) + offset_[n + 1] - offset_[n], options));
  }
  return (parts.empty() ? at::zeros({0}, options) : at::cat(parts)).unsqueeze(0);
}

void RecurrentPass::finish() {
  for (size_t n = 0; n < call_.states.size(); ++n) {
    call_.states[n]->advance(offset_.empty() ? tokens_ : offset_[n + 1] - offset_[n]);
  }
}

Tensor heads(const Tensor& x, int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, x.size(2) / heads});
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
    }
  }
  return spec;
}

int64_t RecurrentLayer::flops(int64_t tokens) const {
  int64_t sum = params_.flops(tokens);
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

void RecurrentLayer::projection(HeadTokens& to, const std::string& name, int64_t width,
                                int64_t hidden) {
  params_.matrix(to.weight, name + "_proj.weight", width, hidden);
}

void RecurrentLayer::convolution(HeadTokens& to, const std::string& name, int64_t width,
                                 int64_t taps) {
  params_.tensor(to.taps, name + "_conv1d.weight", init_conv(width, taps));
  to.history = history("conv_" + name, width, taps - 1);
}

}  // namespace heed::mixer
