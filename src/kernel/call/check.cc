#include "kernel/call/check.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <utility>

namespace heed::kernel {
namespace {

const char* dtype_name(int32_t dtype) {
  constexpr const char* kNames[] = {"float32", "bfloat16", "float16", "float64",
                                    "int64",   "int32",    "uint8"};
  return dtype >= 0 && dtype < 7 ? kNames[dtype] : "an unknown dtype";
}

// "[2,5,8]" into a buffer.
struct SizesText {
  char text[96];

  explicit SizesText(const heed_view& view) {
    int at = std::snprintf(text, sizeof(text), "[");
    for (int i = 0; i < view.rank && i < HEED_MAX_RANK; ++i) {
      at += std::snprintf(text + at, sizeof(text) - static_cast<size_t>(at), "%s%lld",
                          i == 0 ? "" : ",", static_cast<long long>(view.sizes[i]));
    }
    std::snprintf(text + at, sizeof(text) - static_cast<size_t>(at), "]");
  }
};

class Checker {
 public:
  Checker(const CallFields& fields, const void* call, int32_t pass, CallDtypes dtypes,
          CallSizes* sizes, heed_message* message)
      : fields_(fields),
        head_(static_cast<const heed_call*>(call)),
        in_(call_views(fields, call)),
        grad_(call_grads(fields, call)),
        pass_(pass),
        dtypes_(dtypes),
        sizes_(sizes),
        message_(message) {}

  heed_status run() {
    if (head_->struct_size != fields_.size) {
      return call_fail(fields_, HEED_INVALID_ARGUMENT, message_,
                       "the call has %u bytes, this library's has %zu: it is of another version",
                       head_->struct_size, fields_.size);
    }
    // Inputs first, for they name the sizes; the number of sequences follows from B.
    for (size_t i = 0; i < fields_.tensors.size(); ++i) {
      const TensorField& field = fields_.tensors[i];
      if (is_input(field.role) && field.role != Role::kState && !is_index(field.role)) {
        if (const heed_status s = tensor(field, in_[i]); s != HEED_OK) return s;
      }
    }
    if (const heed_status s = pack(); s != HEED_OK) return s;
    for (size_t i = 0; i < fields_.tensors.size(); ++i) {
      const TensorField& field = fields_.tensors[i];
      if (field.role == Role::kState || is_index(field.role) ||
          (!is_input(field.role) && (pass_ != HEED_BACKWARD || fields_.traits.keeps_outputs))) {
        if (const heed_status s = tensor(field, in_[i]); s != HEED_OK) return s;
      }
      if (pass_ == HEED_BACKWARD) {
        if (const heed_status s = gradient(field, grad_[i], in_[i]); s != HEED_OK) return s;
      }
    }
    const CallTraits& traits = fields_.traits;
    if (pass_ == HEED_STEP && (!traits.steps || (*sizes_)[traits.time] != 1)) {
      return call_fail(fields_, HEED_INVALID_ARGUMENT, message_,
                       traits.steps ? "a step takes one token a sequence, not T = %lld"
                                    : "it has no step; T = %lld",
                       static_cast<long long>((*sizes_)[traits.time]));
    }
    return traits.rules ? traits.rules(head_, pass_, *sizes_, message_) : HEED_OK;
  }

 private:
  heed_status pack() {
    const int64_t batch = (*sizes_)["B"], time = (*sizes_)[fields_.traits.time],
                  n = head_->sequences;
    const char* name = fields_.traits.pack;
    if (head_->cu_seqlens == nullptr) {
      sizes_->set("N", batch);
      return HEED_OK;
    }
    if (batch != 1 || n < 0 || pass_ == HEED_STEP) {
      return call_fail(fields_, HEED_INVALID_ARGUMENT, message_,
                       "a pack (%s) has B = 1, not %lld, and is no step", name,
                       static_cast<long long>(batch));
    }
    const int64_t* at = head_->cu_seqlens;
    if (at[0] != 0 || at[n] != time) {
      return call_fail(fields_, HEED_INVALID_ARGUMENT, message_,
                       "%s must start at 0 and end at %s = %lld, it goes from %lld to %lld", name,
                       fields_.traits.time, static_cast<long long>(time),
                       static_cast<long long>(at[0]), static_cast<long long>(at[n]));
    }
    for (int64_t i = 0; i < n; ++i) {
      if (at[i + 1] >= at[i]) continue;
      return call_fail(fields_, HEED_INVALID_ARGUMENT, message_, "%s decreases at entry %lld", name,
                       static_cast<long long>(i) + 1);
    }
    sizes_->set("N", n);
    return HEED_OK;
  }

  heed_status dtype(const char* prefix, const TensorField& field, const heed_view& view,
                    bool token) {
    if (is_index(field.role)) {
      const int32_t expected = field.role == Role::kIndex ? HEED_INT64 : HEED_INT32;
      if (view.dtype == expected && view.device == HEED_CPU) return HEED_OK;
      return call_fail(fields_, HEED_INVALID_ARGUMENT, message_,
                       "%s%s is %s, expected %s in the memory of the CPU", prefix, field.name,
                       dtype_name(view.dtype), dtype_name(expected));
    }
    if (dtypes_ == CallDtypes::kReference && view.dtype == HEED_FLOAT64) return HEED_OK;
    const bool narrow = view.dtype == HEED_BFLOAT16 || view.dtype == HEED_FLOAT16;
    if (view.dtype != HEED_FLOAT32 && !(token && narrow)) {
      return call_fail(fields_, HEED_INVALID_ARGUMENT, message_, "%s%s is %s, expected %s", prefix,
                       field.name, dtype_name(view.dtype),
                       token ? "float32, bfloat16 or float16" : "float32");
    }
    if (!token) return HEED_OK;
    auto& [first, name] = field.role == Role::kKey ? first_key_ : first_token_;
    if (first < 0) first = view.dtype, name = field.name;
    if (view.dtype != first && dtypes_ == CallDtypes::kKernel) {
      return call_fail(fields_, HEED_INVALID_ARGUMENT, message_, "%s%s is %s, but %s is %s", prefix,
                       field.name, dtype_name(view.dtype), name, dtype_name(first));
    }
    return HEED_OK;
  }

  heed_status shape(const char* prefix, const TensorField& field, const heed_view& view) {
    const ShapeText text = shape_of_rank(field.shape, view.rank);
    bool fits = text.rank() == view.rank && view.rank > 0;
    int i = 0;
    text.for_each([&](std::string_view name, int64_t literal) {
      const int64_t size = view.sizes[i++];
      const int64_t known = literal >= 0 ? literal : (*sizes_)[name];
      if (known < 0 && size >= 0) {
        sizes_->set(name, size);
      } else {
        fits = fits && known == size;
      }
    });
    if (fits) return HEED_OK;
    heed_view expected = view;
    bool known = text.rank() == view.rank;
    i = 0;
    text.for_each([&](std::string_view name, int64_t literal) {
      expected.sizes[i++] = literal >= 0 ? literal : (*sizes_)[name];
    });
    return call_fail(fields_, HEED_INVALID_ARGUMENT, message_,
                     "%s%s has shape %s, expected [%s]%s%s", prefix, field.name,
                     SizesText(view).text, field.shape, known ? " = " : "",
                     known ? SizesText(expected).text : "");
  }

  // Rows are contiguous: the last dimension, with those of a fixed size behind a named one ("C,2").
  heed_status layout(const char* prefix, const TensorField& field, const heed_view& view,
                     bool whole) {
    // Without elements strides mean nothing: PyTorch calls any of them contiguous.
    if (std::find(view.sizes, view.sizes + view.rank, 0) != view.sizes + view.rank) return HEED_OK;
    if (!whole && (field.role == Role::kBias || field.role == Role::kStat)) return HEED_OK;
    int row = view.rank, i = 0;
    shape_of_rank(field.shape, view.rank).for_each([&](std::string_view, int64_t literal) {
      if (literal < 0) row = i;
      ++i;
    });
    int64_t stride = 1;
    for (i = view.rank - 1; i >= 0; --i) {
      const bool matters = view.sizes[i] > 1 && (whole || i >= row);
      if (matters && view.strides[i] != stride) {
        return call_fail(fields_, HEED_INVALID_ARGUMENT, message_, "%s%s must be contiguous%s",
                         prefix, field.name, whole ? "" : " over its rows");
      }
      stride *= view.sizes[i];
    }
    return HEED_OK;
  }

  heed_status tensor(const TensorField& field, const heed_view& view) {
    if (!given(view)) {
      if (!field.required || !is_input(field.role)) return HEED_OK;
      return call_fail(fields_, HEED_INVALID_ARGUMENT, message_, "%s [%s] is missing", field.name,
                       field.shape);
    }
    const bool whole = is_contiguous(field.role);
    heed_status s = dtype("", field, view, is_token(field.role));
    if (s == HEED_OK) s = shape("", field, view);
    if (s == HEED_OK) s = data("", field, view);
    if (s == HEED_OK && !is_index(field.role)) s = device("", field, view);
    return s == HEED_OK ? layout("", field, view, whole) : s;
  }

  heed_status gradient(const TensorField& field, const heed_view& view, const heed_view& own) {
    if (!given(view)) return HEED_OK;
    heed_status s = dtype("grad_", field, view, field.role == Role::kOut);
    if (s == HEED_OK && is_input(field.role) && view.rank != own.rank) {
      s = call_fail(fields_, HEED_INVALID_ARGUMENT, message_,
                    "grad_%s has rank %d, %s itself has %d", field.name, view.rank, field.name,
                    own.rank);
    }
    if (s == HEED_OK) s = shape("grad_", field, view);
    if (s == HEED_OK) s = data("grad_", field, view);
    if (s == HEED_OK) s = device("grad_", field, view);
    return s == HEED_OK
               ? layout("grad_", field, view, is_input(field.role) || field.role == Role::kFinal)
               : s;
  }

  // All of a call lie on one device, but for what describes it.
  heed_status device(const char* prefix, const TensorField& field, const heed_view& view) {
    if (device_ < 0) device_ = view.device, device_name_ = field.name;
    if (view.device == device_) return HEED_OK;
    return call_fail(fields_, HEED_INVALID_ARGUMENT, message_, "%s%s is not on the device of %s",
                     prefix, field.name, device_name_);
  }

  heed_status data(const char* prefix, const TensorField& field, const heed_view& view) {
    int64_t count = 1;
    for (int i = 0; i < view.rank; ++i) count *= view.sizes[i];
    if (view.data != nullptr || count == 0) return HEED_OK;
    return call_fail(fields_, HEED_INVALID_ARGUMENT, message_, "%s%s has no memory", prefix,
                     field.name);
  }

  const CallFields& fields_;
  const heed_call* head_;
  const heed_view *in_, *grad_;
  int32_t pass_;
  CallDtypes dtypes_;
  CallSizes* sizes_;
  heed_message* message_;
  std::pair<int32_t, const char*> first_token_ = {-1, ""}, first_key_ = {-1, ""};
  int32_t device_ = -1;
  const char* device_name_ = "";
};

}  // namespace

heed_status call_fail(const CallFields& fields, heed_status status, heed_message* message,
                      const char* format, ...) {
  if (message == nullptr) return status;
  const int at = std::snprintf(message->text, sizeof(message->text), "%s: ", fields.engine);
  va_list args;
  va_start(args, format);
  std::vsnprintf(message->text + at, sizeof(message->text) - static_cast<size_t>(at), format, args);
  va_end(args);
  return status;
}

heed_status check_call(const CallFields& fields, const void* call, int32_t pass, CallDtypes dtypes,
                       CallSizes* sizes, heed_message* message) {
  return Checker(fields, call, pass, dtypes, sizes, message).run();
}

}  // namespace heed::kernel
