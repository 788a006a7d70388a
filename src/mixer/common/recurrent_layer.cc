#include "mixer/common/recurrent_layer.h"

#include <ATen/ATen.h>

#include "io/error.h"
#include "op/attend_shape.h"

namespace heed::mixer {

using at::Tensor;

RecurrentPass::RecurrentPass(const std::string& id, const Tensor& x, Call& call)
    : batch_(x.size(0)),
      tokens_(x.size(1)),
      sequences_(call.sequences(x)),
      device_(x.device()),
      given_positions_(call.positions),
      cu_seqlens_(call.cu_seqlens) {
  if (call.pattern != Pattern::kCausalSelf) {
    throw UsageError("mixer {} is causal self attention only", id);
  }
  if (cu_seqlens_.defined()) offset_ = op::read_offsets(cu_seqlens_, tokens_, "cu_seqlens");
  for (State* state : call.states) {
    auto* own = dynamic_cast<TensorState*>(state);
    if (own == nullptr) throw UsageError("mixer {} was given the state of another mixer", id);
    states_.push_back(own);
  }
}

// Sequences [first, first + count) have x's batch: their last `rows` inputs, then x; the states
// keep the last `rows` of that.
Tensor RecurrentPass::with_history(const std::string& name, const Tensor& x, int64_t rows,
                                   int64_t first, int64_t count) {
  if (states_.empty()) return at::constant_pad_nd(x, {0, 0, rows, 0});
  std::vector<Tensor> kept;
  for (int64_t n = 0; n < count; ++n) kept.push_back(states_[first + n]->tensor(name));
  Tensor joined = at::cat({at::stack(kept).to(x.scalar_type()), x}, 1);
  const Tensor last = joined.detach().slice(1, joined.size(1) - rows);
  for (int64_t n = 0; n < count; ++n) states_[first + n]->tensor(name).copy_(last.select(0, n));
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

Tensor RecurrentPass::short_conv(const std::string& name, const Tensor& x, const Tensor& weight,
                                 const Tensor& bias) {
  const int64_t taps = weight.size(1);
  return over_parts(x, [&](const Tensor& part, int64_t first, int64_t count) {
    const Tensor padded = with_history(name, part, taps - 1, first, count);
    Tensor sum;
    for (int64_t i = 0; i < taps; ++i) {
      const Tensor term = padded.slice(1, i, i + part.size(1)).mul(weight.select(1, i));
      sum = sum.defined() ? sum.add(term) : term;
    }
    return bias.defined() ? sum.add(bias) : sum;
  });
}

Tensor RecurrentPass::previous(const std::string& name, const Tensor& x) {
  return over_parts(x, [&](const Tensor& part, int64_t first, int64_t count) {
    return with_history(name, part, 1, first, count).slice(1, 0, part.size(1));
  });
}

Tensor RecurrentPass::scan(const std::string& name, const Tensor& q, const Tensor& k,
                           const Tensor& v, op::ScanInputs in, const op::ScanOptions& options) {
  in.cu_seqlens = cu_seqlens_;
  if (states_.empty()) return std::get<0>(op::scan(q, k, v, in, options));
  const at::NoGradGuard no_grad;
  if (tokens_ == 1 && sequences_ == 1) {
    return op::scan_step(q, k, v, in, options, states_[0]->tensor(name));
  }
  std::vector<Tensor> initial;
  for (TensorState* state : states_) initial.push_back(state->tensor(name));
  if (initial.empty()) return v;
  Tensor joined = at::cat(initial, 0);
  Tensor out;
  if (tokens_ == 1 && offset_.empty()) {
    out = op::scan_step(q, k, v, in, options, joined);
  } else {
    in.initial_state = joined;
    std::tie(out, joined) = op::scan(q, k, v, in, options);
  }
  for (int64_t n = 0; n < sequences_; ++n) {
    states_[n]->tensor(name).copy_(joined.slice(0, n, n + 1));
  }
  return out;
}

Tensor RecurrentPass::positions() const {
  if (given_positions_.defined()) return given_positions_.to(device_, at::kFloat);
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device_);
  const auto start = [&](int64_t n) { return states_.empty() ? 0 : states_[n]->length(); };
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
  for (size_t n = 0; n < states_.size(); ++n) {
    states_[n]->advance(offset_.empty() ? tokens_ : offset_[n + 1] - offset_[n]);
  }
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const Tensor f = x.to(at::kFloat);
  const Tensor y = f.mul(at::rsqrt(f.square().mean(-1, true).add(eps))).mul(weight.to(at::kFloat));
  return y.to(x.scalar_type());
}

Tensor l2_norm(const Tensor& x, double eps) {
  const Tensor f = x.to(at::kFloat);
  return f.mul(at::rsqrt(f.square().sum(-1, true).add(eps))).to(x.scalar_type());
}

Tensor rotate(const Tensor& x, const Tensor& positions, double theta) {
  const int64_t half = x.size(-1) / 2;
  const auto options = at::TensorOptions().dtype(at::kFloat).device(x.device());
  const Tensor frequency =
      at::exp(at::arange(half, options).mul(-std::log(theta) / static_cast<double>(half)));
  const Tensor angle = positions.unsqueeze(-1).mul(frequency).unsqueeze(2);  // [B,T,1,D/2]
  const Tensor c = at::cos(angle), s = at::sin(angle);
  const Tensor f = x.to(at::kFloat);
  const Tensor a = f.slice(-1, 0, half), b = f.slice(-1, half);
  return at::cat({a.mul(c).sub(b.mul(s)), b.mul(c).add(a.mul(s))}, -1).to(x.scalar_type());
}

Tensor project(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return bias.defined() ? at::linear(x, weight, bias) : at::linear(x, weight);
}

Tensor heads(const Tensor& x, int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, x.size(2) / heads});
}

at::TensorOptions init_options() {
  return at::TensorOptions().dtype(at::kFloat).device(ShapesOnly::on() ? at::kMeta : at::kCPU);
}

Tensor init_projection(int64_t out, int64_t in) {
  const double gain = std::pow(2.0, -2.5);
  const double bound = gain * std::sqrt(6.0 / static_cast<double>(in + out));
  return at::empty({out, in}, init_options()).uniform_(-bound, bound);
}

Tensor init_conv(int64_t width, int64_t taps) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(taps));
  return at::empty({width, taps}, init_options()).uniform_(-bound, bound);
}

Tensor init_dt_bias(int64_t n) {
  const Tensor dt = at::exp(at::empty({n}, init_options()).uniform_(std::log(1e-3), std::log(1e-1)))
                        .clamp_min(1e-4);
  return dt.add(at::log(at::expm1(dt.neg()).neg()));
}

LayerOptions::LayerOptions(const std::string& id, const LayerConfig& config)
    : id_(id),
      options_(config.options),
      hidden_(config.hidden),
      heads_(config.heads),
      head_dim_(config.head_dim) {
  if (!options_.is_object() && !options_.is_null()) {
    throw UsageError("mixer {}: its options must be an object", id);
  }
  if (hidden_ < 1) throw UsageError("mixer {}: hidden size is {}, must be positive", id, hidden_);
  heads_ = integer("heads", std::max<int64_t>(config.heads, 1));
  if (heads_ != config.heads) head_dim_ = 0;
  if (head_dim_ == 0) {
    if (hidden_ % heads_ != 0) {
      throw UsageError("mixer {}: hidden size {} is no multiple of its {} heads", id, hidden_,
                       heads_);
    }
    head_dim_ = hidden_ / heads_;
  }
}

const Json* LayerOptions::find(const std::string& key) {
  asked_.insert(key);
  if (!options_.is_object()) return nullptr;
  const auto it = options_.find(key);
  return it == options_.end() || it->is_null() ? nullptr : &*it;
}

int64_t LayerOptions::integer(const std::string& key, int64_t fallback, int64_t least) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number_integer() || value->get<int64_t>() < least ||
      value->get<int64_t>() > (int64_t{1} << 24)) {
    throw UsageError("mixer {}: option {} is {}, expected a whole number of at least {}", id_, key,
                     value->dump(), least);
  }
  return value->get<int64_t>();
}

double LayerOptions::number(const std::string& key, double fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) {
    throw UsageError("mixer {}: option {} is {}, expected a number", id_, key, value->dump());
  }
  return value->get<double>();
}

bool LayerOptions::flag(const std::string& key, bool fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    throw UsageError("mixer {}: option {} is {}, expected true or false", id_, key, value->dump());
  }
  return value->get<bool>();
}

int64_t LayerOptions::head_width(const std::string& key, double fallback) {
  const double factor = number(key, fallback);
  const double width = factor * static_cast<double>(head_dim_);
  if (!(width >= 1) || width != std::floor(width) || width > 65536) {
    throw UsageError(
        "mixer {}: {} {} times head size {} gives {}, expected a whole number from 1 on", id_, key,
        factor, head_dim_, width);
  }
  return static_cast<int64_t>(width);
}

void LayerOptions::close() const {
  if (!options_.is_object()) return;
  for (const auto& [key, value] : options_.items()) {
    if (asked_.count(key)) continue;
    std::string known;
    for (const std::string& name : asked_) known += (known.empty() ? "" : ", ") + name;
    throw UsageError("mixer {}: unknown option {}, expected: {}", id_, key, known);
  }
}

int64_t projection_flops(const NamedTensors& parameters, int64_t tokens) {
  int64_t sum = 0;
  for (const auto& [name, t] : parameters) {
    if (t.dim() >= 2) sum += 2 * t.numel() * tokens;
  }
  return sum;
}

int64_t scan_flops(int64_t tokens, int64_t heads, int64_t key_dim, int64_t value_dim, bool delta) {
  constexpr int64_t kChunk = 64;
  const int64_t state = 4 * key_dim * value_dim;                  // read and write
  const int64_t inside = 2 * kChunk * (key_dim + value_dim) / 2;  // lower triangles
  return tokens * heads * (state + inside) * (delta ? 2 : 1);
}

std::unique_ptr<State> RecurrentLayer::make_state() const {
  const at::Tensor& any = parameters_.begin()->second;
  NamedTensors tensors;
  for (const auto& [name, shape] : state_shapes()) {
    const bool scan = name.starts_with("state");
    const at::ScalarType type = scan || !any.is_floating_point() ? at::kFloat : any.scalar_type();
    tensors[name] = at::zeros(shape, at::TensorOptions().dtype(type).device(any.device()));
  }
  return std::make_unique<TensorState>(std::move(tensors));
}

int64_t RecurrentLayer::state_bytes(int64_t tokens) const { return make_state()->bytes(); }

}  // namespace heed::mixer
