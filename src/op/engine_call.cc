#include "op/engine_call.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "io/error.h"
#include "op/parallel.h"

namespace heed::op {

using at::Tensor;
using kernel::CallFields;
using kernel::is_input;
using kernel::Role;
using kernel::TensorField;

KernelCall::KernelCall(const CallFields& fields, const void* options, const Tensor& cu_seqlens)
    : fields_(fields), bytes_((fields.size + 7) / 8) {
  auto* head = reinterpret_cast<heed_call*>(bytes_.data());
  head->struct_size = static_cast<uint32_t>(fields.size);
  std::memcpy(data() + fields.options_at, options, fields.options.size() * 8);
  if (!cu_seqlens.defined()) return;
  if (cu_seqlens.dim() != 1 || cu_seqlens.scalar_type() != at::kLong || cu_seqlens.numel() < 1) {
    throw UsageError("{}: cu_seqlens must be int64 [N+1]", fields.engine);
  }
  offsets_ = cu_seqlens.to(at::kCPU).contiguous();
  head->cu_seqlens = offsets_.const_data_ptr<int64_t>();
  head->sequences = offsets_.numel() - 1;
}
kernel::CallSizes KernelCall::check(int32_t pass) {
  kernel::CallSizes sizes;
  heed_message message = {};
  const auto status =
      kernel::check_call(fields_, data(), pass, kernel::CallDtypes::kReference, &sizes, &message);
  if (status != HEED_OK) throw UsageError("{}", message.text);
  return sizes;
}
void KernelCall::run(const heed_backend& backend, int32_t pass, const at::Device& device) {
  const heed_parallel pool = torch_parallel();
  const int64_t bytes = backend.workspace(data(), pass, pool.threads);
  const Tensor workspace = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
  heed_message message = {};
  const heed_status status =
      backend.run(data(), pass, workspace.mutable_data_ptr(), nullptr, &pool, &message);
  if (status == HEED_INVALID_ARGUMENT) throw UsageError("{}", message.text);
  if (status != HEED_OK) throw Error("{} on {}: {}", fields_.engine, backend.name, message.text);
}

Tensor prepared(const Tensor& t, const TensorField& field, bool wide) {
  if (!t.defined()) return t;
  const bool token = field.role == Role::kToken || field.role == Role::kOut;
  const Tensor x = wide || !token ? t.to(wide ? at::kDouble : at::kFloat) : t;
  // A row is the last dimension, or also the one before it: "C,2".
  const std::string_view shape = kernel::shape_of_rank(field.shape, static_cast<int>(t.dim())).text;
  const bool pairs = !shape.empty() && shape.back() >= '0' && shape.back() <= '9' &&
                     !shape.ends_with("-1") && t.dim() > 1 && t.stride(-2) != t.size(-1);
  return pairs || field.role == Role::kState || field.role == Role::kFinal ? x.contiguous()
                                                                           : rows(x);
}

bool is_wide(const CallFields& fields, std::span<const Tensor> tensors) {
  bool wide = false;
  for (size_t i = 0; i < tensors.size(); ++i) {
    wide |= is_input(fields.tensors[i].role) && tensors[i].defined() &&
            tensors[i].scalar_type() == at::kDouble;
  }
  return wide;
}

at::TensorOptions token_options(const CallFields& fields, std::span<const Tensor> tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (fields.tensors[i].role == Role::kToken && tensors[i].defined()) return tensors[i].options();
  }
  throw UsageError("{}: no token tensor is given", fields.engine);
}

void make_outputs(const CallFields& fields, std::span<Tensor> tensors,
                  const kernel::CallSizes& sizes, bool wide) {
  const at::TensorOptions token = token_options(fields, tensors);
  const auto state = token.dtype(wide ? at::kDouble : at::kFloat);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorField& field = fields.tensors[i];
    if (is_input(field.role) || tensors[i].defined()) continue;
    // An output with alternatives has the rank of the first token tensor.
    kernel::ShapeText text = kernel::first_shape(field.shape);
    if (std::string_view(field.shape).find('|') != std::string_view::npos) {
      for (size_t j = 0; j < tensors.size(); ++j) {
        if (fields.tensors[j].role != Role::kToken) continue;
        const int extra = static_cast<int>(tensors[j].dim()) -
                          kernel::first_shape(fields.tensors[j].shape).rank();
        text = kernel::shape_of_rank(field.shape, text.rank() + extra);
        break;
      }
    }
    std::vector<int64_t> shape;
    text.for_each([&](std::string_view name, int64_t literal) {
      shape.push_back(literal >= 0 ? literal : sizes[name]);
    });
    if (std::find(shape.begin(), shape.end(), -1) != shape.end()) continue;
    tensors[i] = at::empty(
        shape, field.role == Role::kOut ? (wide ? token.dtype(at::kDouble) : token) : state);
  }
}

KernelCall bind(const CallFields& fields, std::vector<Tensor>& tensors, const void* options,
                const Tensor& cu_seqlens, bool wide) {
  KernelCall call(fields, options, cu_seqlens);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!is_input(fields.tensors[i].role)) continue;
    tensors[i] = prepared(tensors[i], fields.tensors[i], wide);
    call.set(i, tensors[i]);
  }
  return call;
}

}  // namespace heed::op
