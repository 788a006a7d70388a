// The C entry points of an engine, from its list of fields: tensors of the C struct, which has the
// members of the list in their order, are the call's.
#pragma once

#include <cstring>

#include "kernel/call/fields.h"

namespace heed::kernel {

enum class Asks { kRun, kWorkspace, kSaved };

// Runs (or asks the bytes of workspace, or of what forward keeps, of) the first CPU backend that
// takes the call. The status is HEED_OK, or run.message says what was wrong; bytes are -1 then.
heed_status run_call(const CallFields& fields, std::span<const heed_backend> backends, void* call,
                     const heed_run* run, Asks asks, int64_t* bytes);

template <class C, class CTensors>
heed_status run_from_c(const CallFields& fields, std::span<const heed_backend> backends,
                       const CTensors* tensors, const CTensors* grads,
                       const typename C::Options& options, const heed_run* run,
                       Asks asks = Asks::kRun, int64_t* bytes = nullptr) {
  static_assert(sizeof(CTensors) == sizeof(typename C::template Tensors<heed_view>));
  C call;
  call.options = options;
  if (tensors != nullptr) std::memcpy(static_cast<void*>(&call.in), tensors, sizeof(CTensors));
  if (grads != nullptr) std::memcpy(static_cast<void*>(&call.grad), grads, sizeof(CTensors));
  return run_call(fields, backends, &call, run, asks, bytes);
}
template <class C, class CTensors>
int64_t bytes_from_c(const CallFields& fields, std::span<const heed_backend> backends,
                     const CTensors* tensors, const CTensors* grads,
                     const typename C::Options& options, const heed_run* run, Asks asks) {
  int64_t bytes = -1;
  run_from_c<C>(fields, backends, tensors, grads, options, run, asks, &bytes);
  return bytes;
}

}  // namespace heed::kernel
