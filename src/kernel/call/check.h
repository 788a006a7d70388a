// Checks of a call against its list of fields, and the sizes that its tensors agree on.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernel/call/fields.h"
#include "kernel/simd_dtype.h"

namespace heed::kernel {

// A name of a shape taken apart: "N+1" is the size N and 1 more. The letters are packed into a
// number.
struct SizeName {
  uint64_t key = 0;
  int64_t more = 0;

  explicit SizeName(std::string_view name) {
    if (name.size() > 2 && name.back() == '1') {
      const char sign = name[name.size() - 2];
      if (sign == '-' || sign == '+') {
        more = sign == '+' ? 1 : -1;
        name.remove_suffix(2);
      }
    }
    for (const char c : name) key = key << 8 | static_cast<unsigned char>(c);
  }
};

// Sizes by name, as the shapes of a call fix them.
class CallSizes {
 public:
  // -1 where no tensor of the call has the name.
  int64_t operator[](std::string_view name) const {
    const SizeName n(name);
    for (int i = 0; i < count_; ++i) {
      if (keys_[i] == n.key) return sizes_[i] + n.more >= 0 ? sizes_[i] + n.more : -1;
    }
    return -1;
  }
  void set(std::string_view name, int64_t size) {
    const SizeName n(name);
    if (count_ < kMost) keys_[count_] = n.key, sizes_[count_++] = size - n.more;
  }

 private:
  static constexpr int kMost = 16;
  uint64_t keys_[kMost];
  int64_t sizes_[kMost];
  int count_ = 0;
};

enum class CallDtypes { kKernel, kReference };  // kReference also takes float64 anywhere

// Checks struct_size, dtypes, shapes, strides, packs, and in a step T = 1. On HEED_OK `sizes` holds
// every named size, "N" among them; else `message` says what was wrong, where, and what was
// expected. A tensor without elements may have a null pointer; an absent one has rank 0 and a null
// pointer.
heed_status check_call(const CallFields& fields, const void* call, int32_t pass, CallDtypes dtypes,
                       CallSizes* sizes, heed_message* message);

// Writes the message, with the engine's name in front, and returns `status`.
heed_status call_fail(const CallFields& fields, heed_status status, heed_message* message,
                      const char* format, ...) __attribute__((format(printf, 4, 5)));

// Where sequence n lies: row of the batch, first token, number of tokens.
struct CallSpan {
  int64_t b, begin, length;
};
inline CallSpan call_span(const heed_call& head, int64_t time, int64_t n) {
  if (head.cu_seqlens == nullptr) return {n, 0, time};
  return {0, head.cu_seqlens[n], head.cu_seqlens[n + 1] - head.cu_seqlens[n]};
}

// An element of a view, and the address of one, by its first indices.
inline char* at(const heed_view& view, int64_t i = 0, int64_t j = 0, int64_t k = 0, int64_t l = 0) {
  const int64_t index[] = {i, j, k, l};
  int64_t offset = 0;
  for (int d = 0; d < view.rank && d < 4; ++d) offset += index[d] * view.strides[d];
  return static_cast<char*>(view.data) + offset * dtype_size(view.dtype);
}
inline double load(const heed_view& view, int64_t i = 0, int64_t j = 0, int64_t k = 0,
                   int64_t l = 0) {
  return load_element(at(view, i, j, k, l), view.dtype, 0);
}
inline void store(const heed_view& view, double value, int64_t i = 0, int64_t j = 0, int64_t k = 0,
                  int64_t l = 0) {
  store_element(at(view, i, j, k, l), view.dtype, 0, value);
}

// Whether the view is part of the call.
inline bool given(const heed_view& view) { return view.data != nullptr || view.rank != 0; }

}  // namespace heed::kernel
