// The operators of an engine as its list of fields makes them: their schemas, and their arguments
// on the dispatcher's stack. Internal to the files dispatch*.cc.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <vector>

#include "kernel/call/fields.h"

namespace heed::op {

union Option {
  double number;
  int64_t integer;
};
using Options = std::vector<Option>;

enum class Op { kPlain, kForward, kBackward, kStep };

std::string schema(const kernel::CallFields& fields, Op op);

// The arguments of one operator, from the dispatcher's stack.
struct Arguments {
  std::vector<at::Tensor> tensors, grads;  // in the order of the list
  at::Tensor saved, cu_seqlens;
  Options options;
};

inline at::Tensor tensor_of(const c10::IValue& value) {
  return value.isNone() ? at::Tensor() : value.toTensor();
}

// Takes the arguments of `op` off the stack.
Arguments pop_arguments(const c10::OperatorHandle& op, const kernel::CallFields& fields,
                        torch::jit::Stack* stack);
// A stack with the arguments of `op`.
torch::jit::Stack push_arguments(const c10::OperatorHandle& op, const kernel::CallFields& fields,
                                 const Arguments& a);
// Outputs of an operator are tensors, undefined where the call has none.
void push_outputs(const kernel::CallFields& fields, const Arguments& a, bool finals, bool saved,
                  torch::jit::Stack* stack);

}  // namespace heed::op
