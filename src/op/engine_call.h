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

class KernelCall {
 public:
  KernelCall(const kernel::CallFields& fields, const void* options, const at::Tensor& cu_seqlens);

  char* data() { return reinterpret_cast<char*>(bytes_.data()); }
  heed_call& head() { return *reinterpret_cast<heed_call*>(bytes_.data()); }
  void set(size_t i, const at::Tensor& t) { keep(kernel::call_views(fields_, data())[i], t); }
  void set_grad(size_t i, const at::Tensor& t) { keep(kernel::call_grads(fields_, data())[i], t); }

  // Throws UsageError naming what does not fit.
  kernel::CallSizes check(int32_t pass);
  void run(const heed_backend& backend, int32_t pass, const at::Device& device);

 private:
  void keep(heed_view& view, const at::Tensor& t) {
    if (!t.defined()) return;
    view = view_of(t);
    kept_.push_back(t);
  }

  const kernel::CallFields& fields_;
  std::vector<int64_t> bytes_;
  std::vector<at::Tensor> kept_;
  at::Tensor offsets_;
};

// As the kernels want the tensor of a field.
at::Tensor prepared(const at::Tensor& t, const kernel::TensorField& field, bool wide);

// The call of its pass with its inputs as the kernels want them; `tensors` are replaced by them.
KernelCall bind(const kernel::CallFields& fields, std::vector<at::Tensor>& tensors,
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
