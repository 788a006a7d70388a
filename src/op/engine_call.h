// A call of an engine over tensors: the views that a backend reads, with the memory they point
// into. Internal to the files dispatch*.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernel/call/check.h"
#include "op/dispatch.h"
#include "op/view.h"

namespace heed::op {

// The tensors that are set must outlive the call.
class KernelCall {
 public:
  KernelCall(const kernel::CallFields& fields, const void* options, const at::Tensor& cu_seqlens);

  char* data() { return reinterpret_cast<char*>(bytes_.data()); }
  heed_call& head() { return *reinterpret_cast<heed_call*>(bytes_.data()); }
  void set(size_t i, const at::Tensor& t) { kernel::call_views(fields_, data())[i] = view_of(t); }
  void set_grad(size_t i, const at::Tensor& t) {
    kernel::call_grads(fields_, data())[i] = view_of(t);
  }

  // Throws UsageError naming what does not fit. wide: anything may be float64.
  kernel::CallSizes check(int32_t pass, bool wide);
  void run(const heed_backend& backend, int32_t pass, const at::Device& device);

 private:
  const kernel::CallFields& fields_;
  std::vector<int64_t> bytes_;
  at::Tensor offsets_;
};

// Makes of a tensor what the kernels want of its field; most are so already.
void prepare(at::Tensor& t, const kernel::TensorField& field, bool wide);

// The call of a pass with its inputs as the kernels want them; `tensors` are replaced by them.
KernelCall bind_call(const kernel::CallFields& fields, std::vector<at::Tensor>& tensors,
                     const void* options, const at::Tensor& cu_seqlens, bool wide);

// Empty outputs, those whose sizes are known.
void make_outputs(const kernel::CallFields& fields, std::span<at::Tensor> tensors,
                  const kernel::CallSizes& sizes, bool wide);

// Whether anything is float64: then there is no kernel.
bool is_wide(const kernel::CallFields& fields, std::span<const at::Tensor> tensors);

// Those of the tokens; throws UsageError where there are none.
at::TensorOptions token_options(const kernel::CallFields& fields,
                                std::span<const at::Tensor> tensors);
inline at::Device device_of(const kernel::CallFields& fields, std::span<const at::Tensor> tensors) {
  return token_options(fields, tensors).device();
}

}  // namespace heed::op
