#include "io/tensor_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <utility>

#include "io/describe.h"
#include "io/error.h"

namespace heed {
namespace {

// Block sizes and bytes of ggml's types (ggml-common.h), in the order of DType.
constexpr std::array kDTypes = {
    DTypeInfo{"F64", 1, 8},        DTypeInfo{"F32", 1, 4},         DTypeInfo{"F16", 1, 2},
    DTypeInfo{"BF16", 1, 2},       DTypeInfo{"F8_E4M3", 1, 1},     DTypeInfo{"F8_E5M2", 1, 1},
    DTypeInfo{"I64", 1, 8},        DTypeInfo{"I32", 1, 4},         DTypeInfo{"I16", 1, 2},
    DTypeInfo{"I8", 1, 1},         DTypeInfo{"U64", 1, 8},         DTypeInfo{"U32", 1, 4},
    DTypeInfo{"U16", 1, 2},        DTypeInfo{"U8", 1, 1},          DTypeInfo{"BOOL", 1, 1},
    DTypeInfo{"Q4_0", 32, 18},     DTypeInfo{"Q4_1", 32, 20},      DTypeInfo{"Q5_0", 32, 22},
    DTypeInfo{"Q5_1", 32, 24},     DTypeInfo{"Q8_0", 32, 34},      DTypeInfo{"Q8_1", 32, 40},
    DTypeInfo{"Q2_K", 256, 84},    DTypeInfo{"Q3_K", 256, 110},    DTypeInfo{"Q4_K", 256, 144},
    DTypeInfo{"Q5_K", 256, 176},   DTypeInfo{"Q6_K", 256, 210},    DTypeInfo{"Q8_K", 256, 292},
    DTypeInfo{"IQ2_XXS", 256, 66}, DTypeInfo{"IQ2_XS", 256, 74},   DTypeInfo{"IQ2_S", 256, 82},
    DTypeInfo{"IQ3_XXS", 256, 98}, DTypeInfo{"IQ3_S", 256, 110},   DTypeInfo{"IQ1_S", 256, 50},
    DTypeInfo{"IQ1_M", 256, 56},   DTypeInfo{"IQ4_NL", 32, 18},    DTypeInfo{"IQ4_XS", 256, 136},
    DTypeInfo{"TQ1_0", 256, 54},   DTypeInfo{"TQ2_0", 256, 66},    DTypeInfo{"MXFP4", 32, 17},
    DTypeInfo{"F8_E8M0", 1, 1},    DTypeInfo{"F8_E4M3FNUZ", 1, 1}, DTypeInfo{"F8_E5M2FNUZ", 1, 1},
    DTypeInfo{"C64", 1, 8},        DTypeInfo{"F4", 2, 1},          DTypeInfo{"F6_E2M3", 4, 3},
    DTypeInfo{"F6_E3M2", 4, 3},
};
static_assert(kDTypes.size() == static_cast<size_t>(DType::F6_E3M2) + 1);

constexpr int64_t kMaxElements = int64_t{1} << 62;

// The product of the sizes that are not zero: an empty tensor must not lie about its rows either.
std::optional<int64_t> nonzero_product(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (const int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size == 0) continue;
    if (product > kMaxElements / size) return std::nullopt;
    product *= size;
  }
  return product;
}

}  // namespace

const DTypeInfo& dtype_info(DType dtype) { return kDTypes.at(static_cast<size_t>(dtype)); }

std::optional<int64_t> count_elements(const std::vector<int64_t>& shape) {
  const std::optional<int64_t> product = nonzero_product(shape);
  if (!product) return std::nullopt;
  return std::find(shape.begin(), shape.end(), 0) == shape.end() ? *product : 0;
}

std::optional<int64_t> count_bytes(const std::vector<int64_t>& shape, DType dtype) {
  const DTypeInfo& info = dtype_info(dtype);
  const std::optional<int64_t> product = nonzero_product(shape);
  if (!product || *product / info.block >= kMaxElements / info.bytes) return std::nullopt;
  if (info.block > 1 && (shape.empty() || shape.back() % info.block != 0)) return std::nullopt;
  return *count_elements(shape) / info.block * info.bytes;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

int64_t TensorInfo::elements() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

int64_t TensorInfo::row_size() const { return shape.empty() ? 1 : shape.back(); }

int64_t TensorInfo::rows() const {
  const int64_t row = row_size();
  return row == 0 ? 0 : elements() / row;
}

int64_t TensorInfo::row_bytes() const {
  const DTypeInfo& info = dtype_info(dtype);
  return row_size() / info.block * info.bytes;
}

const TensorInfo* TensorFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors[found->second];
}

const TensorInfo& TensorFile::get(std::string_view name) const {
  const TensorInfo* tensor = find(name);
  if (tensor == nullptr) {
    throw Error("{}: tensor '{}' is missing; the file holds {} tensors", printable(path),
                printable(name), tensors.size());
  }
  return *tensor;
}

bool TensorFile::add(TensorInfo tensor) {
  const auto [at, fresh] = index_.try_emplace(tensor.name, tensors.size());
  if (fresh) tensors.push_back(std::move(tensor));
  return fresh;
}

}  // namespace heed
