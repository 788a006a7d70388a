// The operators torch.ops.heed.scan, scan_forward, scan_backward, scan_step: the engine's table,
// and functions over it.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "op/dispatch.h"
#include "op/scan.h"

namespace heed::op {
namespace {

using at::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

// Chunks need float32: the sums of float64 go token by token, and so does one token.
void by_chunks(ScanTensors& x, const ScanOptions& options) {
  const bool one = x.q.size(1) == 1 || x.q.scalar_type() == at::kDouble;
  one ? naive::scan(x, options) : naive::scan_chunked(x, options);
}

constexpr auto kNaive = naive_of<kernel::ScanCall, naive::scan>;
constexpr auto kChunked = naive_of<kernel::ScanCall, naive::scan_chunked>;
constexpr auto kByChunks = naive_of<kernel::ScanCall, by_chunks>;

const Engine& scan_engine() {
  static const Engine::TensorBackend on_cuda[] = {
      Engine::TensorBackend::on_cuda("scan", "pytorch-chunks", 0, nullptr, kByChunks)};
  static const Engine engine(kernel::kScan, kByChunks, kernel::scan_backends(), on_cuda);
  return engine;
}

// Gates beside tokens that are not float64 are float32: they alone do not ask for float64.
ScanTensors tensors_of(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& in) {
  ScanTensors x{q, k, v, in.p, in.r, in.beta, in.log_decay, in.bonus, in.initial_state, {}, {}};
  if (q.scalar_type() == at::kDouble) return x;
  for (Tensor* t : {&x.beta, &x.log_decay, &x.bonus, &x.initial_state}) {
    if (t->defined() && t->scalar_type() == at::kDouble) *t = t->to(at::kFloat);
  }
  return x;
}

Pair run_form(Engine::Form form, const Tensor& q, const Tensor& k, const Tensor& v,
              const ScanInputs& in, const ScanOptions& options) {
  ScanTensors x = tensors_of(q, k, v, in);
  scan_engine().run_form(form, tensor_list(x), &options, in.cu_seqlens);
  return {x.out, x.final_state};
}

}  // namespace

void register_scan(torch::Library& library) { scan_engine().define(library); }

Pair scan(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& in,
          const ScanOptions& options) {
  ScanTensors x = tensors_of(q, k, v, in);
  scan_engine().forward(tensor_list(x), &options, in.cu_seqlens);
  return {std::move(x.out), std::move(x.final_state)};
}

Pair scan_naive(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& in,
                const ScanOptions& options) {
  return run_form(kNaive, q, k, v, in, options);
}

Pair scan_chunked_naive(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& in,
                        const ScanOptions& options) {
  return run_form(kChunked, q, k, v, in, options);
}

Tensor scan_step(const Tensor& q, const Tensor& k, const Tensor& v, const ScanInputs& in,
                 const ScanOptions& options, Tensor& state) {
  ScanTensors x = tensors_of(q, k, v, in);
  x.initial_state = state;
  scan_engine().step(tensor_list(x), &options);
  return std::move(x.out);
}

}  // namespace heed::op
