#include "cache/tensor_io.h"

#include <ATen/ATen.h>

#include "io/safetensors.h"

namespace heed {
namespace {

struct TypePair {
  DType file;
  at::ScalarType tensor;
};
constexpr TypePair kTypes[] = {{DType::F64, at::kDouble},    {DType::F32, at::kFloat},
                               {DType::F16, at::kHalf},      {DType::I64, at::kLong},
                               {DType::BF16, at::kBFloat16}, {DType::I32, at::kInt},
                               {DType::I16, at::kShort},     {DType::I8, at::kChar},
                               {DType::U8, at::kByte},       {DType::BOOL, at::kBool}};

}  // namespace

NamedTensors read_tensors(const std::string& path) {
  const TensorFile file = open_safetensors(path);
  NamedTensors tensors;
  for (const TensorInfo& info : file.tensors) {
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                    [&](const TypePair& t) { return t.file == info.dtype; });
    if (type == std::end(kTypes)) {
      throw Error("{}: tensor {} has type {}, which is not read here", path, info.name,
                  dtype_name(info.dtype));
    }
    const at::Tensor tensor = at::empty(info.shape, type->tensor);
    if (info.bytes > 0) std::memcpy(tensor.data_ptr(), info.data, info.bytes);
    tensors[info.name] = tensor;
  }
  return tensors;
}

void write_tensors(const std::string& path, const NamedTensors& tensors) {
  std::vector<TensorInfo> infos;
  std::vector<at::Tensor> kept;
  for (const auto& [name, t] : tensors) {
    const at::Tensor tensor = t.detach().cpu().contiguous();
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const TypePair& p) {
      return p.tensor == tensor.scalar_type();
    });
    if (type == std::end(kTypes)) {
      throw Error("{}: tensor {} has type {}, which safetensors does not hold", path, name,
                  c10::toString(tensor.scalar_type()));
    }
    TensorInfo info;
    info.name = name;
    info.dtype = type->file;
    info.shape = tensor.sizes().vec();
    info.data = static_cast<const std::byte*>(tensor.const_data_ptr());
    info.bytes = tensor.nbytes();
    infos.push_back(info);
    kept.push_back(tensor);
  }
  write_safetensors(path, infos);
}

}  // namespace heed
