#include "op/engine_call.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "io/error.h"
#include "op/parallel.h"

namespace heed::op {

using at::Tensor;
using kernel::CallFields;
using kernel::is_index;
using kernel::is_input;
using kernel::is_token;
using kernel::Role;
using kernel::TensorField;

KernelCall::KernelCall(const CallFields& fields, const void* options, const Tensor& cu_seqlens)
    : fields_(fields), bytes_((fields.size + 7) / 8) {
  auto* head = reinterpret_cast<heed_call*>(bytes_.data());
  head->struct_size = static_cast<uint32_t>(fields.size);
  std::memcpy(data() + fields.options_at, options, fields.options.size() * 8);
  if (!cu_seqlens.defined()) return;
  if (cu_seqlens.dim() != 1 || cu_seqlens.scalar_type() != at::kLong || cu_seqlens.numel() < 1) {
    throw UsageError("{}: {} must be int64 [N+1]", fields.engine, fields.traits.pack);
  }
  offsets_ = cu_seqlens.to(at::kCPU).contiguous();
  head->cu_seqlens = offsets_.const_data_ptr<int64_t>();
  head->sequences = offsets_.numel() - 1;
}
kernel::CallSizes KernelCall::check(int32_t pass, bool wide) {
  kernel::CallSizes sizes;
  heed_message message = {};
  const auto status = kernel::check_call(
      fields_, data(), pass, wide ? kernel::CallDtypes::kReference : kernel::CallDtypes::kKernel,
      &sizes, &message);
  if (status != HEED_OK) throw UsageError("{}", message.text);
  return sizes;
}
void KernelCall::run(const heed_backend& backend, int32_t pass, const at::Device& device) {
  const heed_parallel pool = torch_parallel();
  const int64_t bytes = backend.workspace(data(), pass, pool.threads);
  Tensor on_device;
  std::unique_ptr<void, decltype(&std::free)> on_host(nullptr, std::free);
  if (device.is_cpu()) {
    on_host.reset(bytes > 0 ? std::malloc(static_cast<size_t>(bytes)) : nullptr);
    if (bytes > 0 && !on_host) {
      throw Error("{}: no memory for {} bytes of workspace", fields_.engine, bytes);
    }
  } else {
    on_device = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
  }
  void* workspace = on_device.defined() ? on_device.mutable_data_ptr() : on_host.get();
  heed_message message = {};
  const heed_status status = backend.run(data(), pass, workspace, nullptr, &pool, &message);
  if (status == HEED_INVALID_ARGUMENT) throw UsageError("{}", message.text);
  if (status != HEED_OK) throw Error("{} on {}: {}", fields_.engine, backend.name, message.text);
}

void prepare(Tensor& t, const TensorField& field, bool wide) {
  if (!t.defined()) return;
  if (is_index(field.role)) {
    t = t.to(at::kCPU).contiguous();
    return;
  }
  if (wide || !is_token(field.role)) t = t.to(wide ? at::kDouble : at::kFloat);
  const int64_t rank = t.dim();
  bool whole = is_contiguous(field.role);
  if (!whole && rank > 1 && t.stride(-2) != t.size(-1)) {
    // A row is the last dimension, or also the one before it: "C,2".
    const auto shape = kernel::shape_of_rank(field.shape, static_cast<int>(rank)).text;
    whole =
        !shape.empty() && shape.back() >= '0' && shape.back() <= '9' &&
        (shape.size() < 2 || (shape[shape.size() - 2] != '-' && shape[shape.size() - 2] != '+'));
  }
  if (whole && !t.is_contiguous()) t = t.contiguous();
  if (field.role == Role::kBias || field.role == Role::kStat) return;
  if (!whole && rank > 0 && t.stride(-1) != 1 && t.size(-1) > 1) t = t.contiguous();
}

bool is_wide(const CallFields& fields, std::span<const Tensor> tensors) {
  bool wide = false;
  for (size_t i = 0; i < tensors.size(); ++i) {
    wide |= takes_gradient(fields.tensors[i].role) && tensors[i].defined() &&
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

KernelCall bind_call(const CallFields& fields, std::vector<Tensor>& tensors, const void* options,
                     const Tensor& cu_seqlens, bool wide) {
  KernelCall call(fields, options, cu_seqlens);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!is_input(fields.tensors[i].role)) continue;
    prepare(tensors[i], fields.tensors[i], wide);
    if (tensors[i].defined()) call.set(i, tensors[i]);
  }
  return call;
}

}  // namespace heed::op
