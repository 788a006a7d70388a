#include "mixer/common/scan_core.h"

#include <ATen/ATen.h>

#include "op/attend_shape.h"

namespace heed::mixer {
namespace {

// Tokens [begin, end) one at a time; `state` [B,H,K,V] is advanced.
at::Tensor decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const op::ScanInputs& in, const op::ScanOptions& options, int64_t begin,
                  int64_t end, at::Tensor& state) {
  std::vector<at::Tensor> outs;
  for (int64_t t = begin; t < end; ++t) {
    const auto cut = [t](const at::Tensor& x) { return x.defined() ? x.slice(1, t, t + 1) : x; };
    op::ScanInputs step = in;
    step.p = cut(in.p);
    step.r = cut(in.r);
    step.beta = cut(in.beta);
    if (in.log_decay.defined() && in.log_decay.dim() > 1) step.log_decay = cut(in.log_decay);
    outs.push_back(op::scan_step(cut(q), cut(k), cut(v), step, options, state));
  }
  return outs.empty() ? v.slice(1, begin, begin) : at::cat(outs, 1);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> run_scan(const std::string& form, const at::Tensor& q,
                                            const at::Tensor& k, const at::Tensor& v,
                                            const op::ScanInputs& in,
                                            const op::ScanOptions& options) {
  if (form == "naive") return op::scan_naive(q, k, v, in, options);
  if (form != "recurrent") return op::scan(q, k, v, in, options);
  const bool packed = in.cu_seqlens.defined();
  const int64_t sequences = packed ? in.cu_seqlens.size(0) - 1 : q.size(0);
  at::Tensor state =
      in.initial_state.defined()
          ? in.initial_state.to(at::kFloat).clone(at::MemoryFormat::Contiguous)
          : at::zeros({sequences, q.size(2), q.size(3), v.size(3)}, q.options().dtype(at::kFloat));
  if (!packed) return {decode(q, k, v, in, options, 0, q.size(1), state), state};
  const std::vector<int64_t> offset = op::read_offsets(in.cu_seqlens, q.size(1), "cu_seqlens");
  std::vector<at::Tensor> outs;
  for (int64_t n = 0; n < sequences; ++n) {
    at::Tensor own = state.slice(0, n, n + 1);
    outs.push_back(decode(q, k, v, in, options, offset[n], offset[n + 1], own));
  }
  return {outs.empty() ? v : at::cat(outs, 1), state};
}

op::ScanOptions scan_options(const CoreCall& call, const at::Tensor& q,
                             std::optional<double> fallback) {
  op::ScanOptions options;
  const double key_dim = static_cast<double>(std::max<int64_t>(q.size(-1), 1));
  options.scale = call.settings.number("scale", fallback.value_or(1.0 / std::sqrt(key_dim)));
  options.chunk = call.settings.integer("chunk", 64);
  return options;
}

TensorSpec token(const std::string& name, const std::string& shape, Sample sample) {
  TensorSpec spec;
  spec.name = name;
  spec.shape = shape;
  spec.token = true;
  spec.sample = sample;
  return spec;
}

TensorSpec gate(const std::string& name, const std::string& shape, Sample sample, bool optional) {
  TensorSpec spec;
  spec.name = name;
  spec.shape = shape;
  spec.sample = sample;
  spec.optional = optional;
  return spec;
}

TensorSpec initial_state() { return gate("initial_state", "S,H,K,V", Sample::kNormal, true); }

TensorSpec offsets() { return gate("cu_seqlens", "N+1", Sample::kOffsets, true); }

TensorSpec output(const std::string& name, const std::string& shape) {
  return gate(name, shape, Sample::kNormal);
}

SettingSpec scale_setting(const std::string& default_value) {
  return {"scale", SettingType::kNumber, default_value};
}

SettingSpec chunk_setting() { return {"chunk", SettingType::kInt, "64"}; }

Traits recurrent_traits(bool resets) {
  Traits traits;
  traits.linear_time = true;
  traits.resets = resets;
  return traits;
}

}  // namespace heed::mixer
