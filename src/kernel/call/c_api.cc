#include "kernel/call/c_api.h"

#include <cstdio>
#include <cstdlib>

#include "kernel/call/check.h"
#include "kernel/parallel.h"

namespace heed::kernel {
namespace {

heed_status finish(const heed_run* run, heed_status status, const heed_message& message) {
  if (run != nullptr && run->struct_size == sizeof(heed_run) && run->message != nullptr &&
      run->message_size > 0) {
    std::snprintf(run->message, static_cast<size_t>(run->message_size), "%s",
                  status == HEED_OK ? "" : message.text);
  }
  return status;
}

heed_status run_backend(const CallFields& fields, const heed_backend& backend, void* call,
                        const heed_run* run, heed_message* message) {
  const int32_t threads = parallel_threads(run->parallel);
  const int64_t needed = backend.workspace(call, run->pass, threads);
  void* workspace = run->workspace;
  if (workspace == nullptr && needed > 0) {
    workspace = std::malloc(static_cast<size_t>(needed));
    if (workspace == nullptr) {
      return call_fail(fields, HEED_OUT_OF_MEMORY, message, "no memory for %lld bytes of workspace",
                       static_cast<long long>(needed));
    }
  } else if (run->workspace_bytes < needed) {
    return call_fail(fields, HEED_INVALID_ARGUMENT, message,
                     "the workspace has %lld bytes, %lld are needed",
                     static_cast<long long>(run->workspace_bytes), static_cast<long long>(needed));
  }
  const heed_status status =
      backend.run(call, run->pass, workspace, nullptr, run->parallel, message);
  if (workspace != run->workspace) std::free(workspace);
  return status;
}

// The entry points run on the CPU alone.
heed_status check_device(const CallFields& fields, const heed_view* views, const char* prefix,
                         heed_message* message) {
  for (size_t i = 0; i < fields.tensors.size(); ++i) {
    if (!given(views[i]) || views[i].device == HEED_CPU) continue;
    return call_fail(fields, HEED_INVALID_ARGUMENT, message, "%s%s is not on the CPU", prefix,
                     fields.tensors[i].name);
  }
  return HEED_OK;
}

heed_status check_all(const CallFields& fields, const void* call, const heed_run* run,
                      CallCheck check, heed_message* message) {
  if (run->pass < HEED_FORWARD || run->pass > HEED_STEP) {
    return call_fail(fields, HEED_INVALID_ARGUMENT, message, "pass %d is no heed_pass", run->pass);
  }
  heed_status status = check_device(fields, call_views(fields, call), "", message);
  if (status == HEED_OK) status = check_device(fields, call_grads(fields, call), "grad_", message);
  CallSizes sizes;
  if (status == HEED_OK) {
    status = check_call(fields, call, run->pass, CallDtypes::kKernel, &sizes, message);
  }
  if (status == HEED_OK && check != nullptr) status = check(call, run->pass, message);
  return status;
}

}  // namespace

heed_status run_call(const CallFields& fields, std::span<const heed_backend> backends, void* call,
                     const heed_run* run, Asks asks, int64_t* bytes, CallCheck check) {
  heed_message message = {};
  if (run == nullptr || run->struct_size != sizeof(heed_run)) {
    return finish(run, HEED_INVALID_ARGUMENT, message);
  }
  auto* head = static_cast<heed_call*>(call);
  head->cu_seqlens = run->cu_seqlens;
  head->sequences = run->sequences;
  head->saved = run->saved;
  heed_status status = check_all(fields, call, run, check, &message);
  if (status != HEED_OK) return finish(run, status, message);
  status = call_fail(fields, HEED_UNSUPPORTED, &message, "no backend takes this call");
  for (const heed_backend& backend : backends) {
    if (backend.device != HEED_CPU) continue;
    const char* reason = backend.refuses ? backend.refuses(call, run->pass) : nullptr;
    if (reason != nullptr) {
      status = call_fail(fields, HEED_UNSUPPORTED, &message, "%s: %s", backend.name, reason);
      continue;
    }
    if (asks == Asks::kRun) {
      status = run_backend(fields, backend, call, run, &message);
    } else {
      *bytes = asks == Asks::kWorkspace
                   ? backend.workspace(call, run->pass, parallel_threads(run->parallel))
               : backend.saved ? backend.saved(call)
                               : 0;
      status = HEED_OK;
    }
    break;
  }
  return finish(run, status, message);
}

}  // namespace heed::kernel
