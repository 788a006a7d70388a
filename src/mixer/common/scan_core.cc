#include "mixer/common/scan_core.h"

#include <ATen/ATen.h>

#include "op/attend_shape.h"

namespace heed::mixer {
namespace {

// Tokens [begin, end) one at a time; `state` [B,H,K,V] is advanced.
at::Tensor decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const op::ScanInputs& in, const op::ScanOptions& options, int64_t begin,
                  int64_t end, at::Tensor& state) {
  if (begin == 0 && end == 1 && q.size(1) == 1) return op::scan_step(q, k, v, in, options, state);
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

at::Tensor scan_steps(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const op::ScanInputs& in, const op::ScanOptions& options, at::Tensor& state) {
  return decode(q, k, v, in, options, 0, q.size(1), state);
}

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

NamedTensors scan_core(const CoreCall& call, ScanParts parts) {
  const auto take = [&call](at::Tensor& part, const char* name) {
    if (!part.defined()) part = call.get(name);
  };
  take(parts.q, "q");
  take(parts.k, "k");
  take(parts.v, "v");
  op::ScanInputs& in = parts.in;
  take(in.p, "p");
  if (in.p.defined()) take(in.r, "r");  // alone it is the query of an RWKV
  take(in.beta, "beta");
  take(in.log_decay, "log_decay");
  take(in.initial_state, "initial_state");
  take(in.cu_seqlens, "cu_seqlens");
  op::ScanOptions options = scan_options(call, parts.q, parts.scale);
  options.read_before = parts.read_before;
  const auto [out, state] = run_scan(call.form, parts.q, parts.k, parts.v, in, options);
  return {{"out", out}, {"final_state", state}};
}

at::Tensor with_ones(const at::Tensor& v) {
  return at::cat({v, at::ones_like(v.slice(-1, 0, 1))}, -1);
}

}  // namespace heed::mixer
