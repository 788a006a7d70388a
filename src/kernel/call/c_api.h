// The C entry points of an engine, from its list of fields: tensors of the C struct, which has the
// members of the list in their order, are the call's.
#pragma once

#include <cstring>

#include "kernel/call/check.h"
#include "kernel/call/fields.h"

namespace heed::kernel {

enum class Asks { kRun, kWorkspace, kSaved };

// What the list of fields does not say of an engine's call, besides what check_call does.
using CallCheck = heed_status (*)(const void* call, int32_t pass, heed_message* message);

// Runs (or asks the bytes of workspace, or of what forward keeps, of) the first CPU backend that
// takes the call. The status is HEED_OK, or run.message says what was wrong; bytes are -1 then.
heed_status run_call(const CallFields& fields, std::span<const heed_backend> backends, void* call,
                     const heed_run* run, Asks asks, int64_t* bytes, CallCheck check = nullptr);

// An engine as C sees it: its structs have the members of the lists, in their order. What the
// functions of a header in include/heed/ are made of, one line each.
template <class C>
class CEntry {
 public:
  using Backends = std::span<const heed_backend> (*)();
  constexpr CEntry(const CallFields& fields, Backends backends, CallCheck check)
      : fields_(fields), backends_(backends), check_(check) {}

  template <class COptions>
  void defaults(COptions* options) const {
    static_assert(sizeof(COptions) == sizeof(typename C::Options));
    const typename C::Options values;
    if (options != nullptr) std::memcpy(static_cast<void*>(options), &values, sizeof(values));
  }

  // options: NULL for the defaults.
  template <class CTensors, class COptions = NoOptions>
  heed_status run(const CTensors* tensors, const CTensors* grads, const COptions* options,
                  const heed_run* run) const {
    return call(tensors, grads, options, run, Asks::kRun, nullptr);
  }
  template <class CTensors, class COptions = NoOptions>
  int64_t workspace(const CTensors* tensors, const CTensors* grads, const COptions* options,
                    const heed_run* run) const {
    int64_t bytes = -1;
    call(tensors, grads, options, run, Asks::kWorkspace, &bytes);
    return bytes;
  }
  template <class CTensors, class COptions = NoOptions>
  int64_t saved(const CTensors* tensors, const COptions* options, const heed_run* run) const {
    int64_t bytes = -1;
    call(tensors, static_cast<const CTensors*>(nullptr), options, run, Asks::kSaved, &bytes);
    return bytes;
  }

 private:
  template <class CTensors, class COptions>
  heed_status call(const CTensors* tensors, const CTensors* grads, const COptions* options,
                   const heed_run* run, Asks asks, int64_t* bytes) const {
    static_assert(sizeof(CTensors) == sizeof(typename C::template Tensors<heed_view>));
    static_assert(sizeof(COptions) == sizeof(typename C::Options));
    C c;
    if (options != nullptr) std::memcpy(static_cast<void*>(&c.options), options, sizeof(COptions));
    if (tensors != nullptr) std::memcpy(static_cast<void*>(&c.in), tensors, sizeof(CTensors));
    if (grads != nullptr) std::memcpy(static_cast<void*>(&c.grad), grads, sizeof(CTensors));
    return run_call(fields_, backends_(), &c, run, asks, bytes, check_);
  }

  const CallFields& fields_;
  Backends backends_;
  CallCheck check_;
};
constexpr const NoOptions* kNoOptions = nullptr;

// A CallCheck out of an engine's own check of a whole call.
template <class C, heed_status (*kCheck)(const C&, int32_t, CallDtypes, CallSizes*, heed_message*)>
heed_status call_check(const void* call, int32_t pass, heed_message* message) {
  CallSizes sizes;
  return kCheck(*static_cast<const C*>(call), pass, CallDtypes::kKernel, &sizes, message);
}

}  // namespace heed::kernel
