// The operators ewscan, selective_scan and lse_scan: the engines' tables, and functions over them.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "op/ewscan.h"

namespace heed::op {
namespace {

template <class Tensors, class Options>
Tensors forward(const Engine& engine, Tensors x, const Options& options,
                const at::Tensor& cu_seqlens) {
  engine.forward(tensor_list(x), &options, cu_seqlens);
  return x;
}
template <class Tensors, class Options>
Tensors forward_naive(const Engine& engine, Tensors x, const Options& options,
                      const at::Tensor& cu_seqlens) {
  engine.run_naive(tensor_list(x), &options, cu_seqlens);
  return x;
}

constexpr kernel::NoOptions kNoOptions;

}  // namespace

Engine& ewscan_engine() {
  static Engine engine(kernel::kEwscan, naive_of<kernel::EwscanCall, naive::ewscan>,
                       kernel::ewscan_backends());
  return engine;
}
Engine& selective_scan_engine() {
  static Engine engine(kernel::kSelectiveScan,
                       naive_of<kernel::SelectiveCall, naive::selective_scan>,
                       kernel::selective_scan_backends());
  return engine;
}
Engine& lse_scan_engine() {
  static Engine engine(kernel::kLseScan, naive_of<kernel::LseCall, naive::lse_scan>,
                       kernel::lse_scan_backends());
  return engine;
}

void register_ewscan(torch::Library& library) {
  ewscan_engine().define(library);
  selective_scan_engine().define(library);
  lse_scan_engine().define(library);
}

EwscanTensors ewscan(EwscanTensors x, const at::Tensor& cu_seqlens) {
  return forward(ewscan_engine(), std::move(x), kNoOptions, cu_seqlens);
}
EwscanTensors ewscan_naive(EwscanTensors x, const at::Tensor& cu_seqlens) {
  return forward_naive(ewscan_engine(), std::move(x), kNoOptions, cu_seqlens);
}
SelectiveTensors selective_scan(SelectiveTensors x, const SelectiveOptions& options,
                                const at::Tensor& cu_seqlens) {
  return forward(selective_scan_engine(), std::move(x), options, cu_seqlens);
}
SelectiveTensors selective_scan_naive(SelectiveTensors x, const SelectiveOptions& options,
                                      const at::Tensor& cu_seqlens) {
  return forward_naive(selective_scan_engine(), std::move(x), options, cu_seqlens);
}
LseTensors lse_scan(LseTensors x, const at::Tensor& cu_seqlens) {
  return forward(lse_scan_engine(), std::move(x), kNoOptions, cu_seqlens);
}
LseTensors lse_scan_naive(LseTensors x, const at::Tensor& cu_seqlens) {
  return forward_naive(lse_scan_engine(), std::move(x), kNoOptions, cu_seqlens);
}

SelectiveTensors selective_scan_steps(SelectiveTensors x, const SelectiveOptions& options,
                                      const at::Tensor& cu_seqlens) {
  selective_scan_engine().run_steps(tensor_list(x), &options, cu_seqlens);
  return x;
}
LseTensors lse_scan_steps(LseTensors x, const at::Tensor& cu_seqlens) {
  lse_scan_engine().run_steps(tensor_list(x), &kNoOptions, cu_seqlens);
  return x;
}

at::Tensor selective_scan_step(SelectiveTensors x, const SelectiveOptions& options) {
  selective_scan_engine().step(tensor_list(x), &options);
  return x.out;
}
at::Tensor lse_scan_step(LseTensors x) {
  lse_scan_engine().step(tensor_list(x), &kNoOptions);
  return x.out;
}

}  // namespace heed::op
