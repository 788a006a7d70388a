// The C entry points of include/heed/ewscan.h over the engine.
#include "kernel/call/c_api.h"

#include "heed/ewscan.h"
#include "kernel/ewscan/ewscan.h"

using namespace heed::kernel;  // NOLINT(google-build-using-namespace): C functions over one engine

namespace {

SelectiveOptions options_of(const heed_selective_scan_options* options) {
  return {options == nullptr ? 0 : options->dt_softplus};
}

}  // namespace

extern "C" {

heed_status heed_ewscan(const heed_ewscan_tensors* tensors, const heed_ewscan_tensors* grads,
                        const heed_run* run) {
  return run_from_c<EwscanCall>(kEwscan, ewscan_backends(), tensors, grads, {}, run);
}
heed_status heed_selective_scan(const heed_selective_scan_tensors* tensors,
                                const heed_selective_scan_tensors* grads,
                                const heed_selective_scan_options* options, const heed_run* run) {
  return run_from_c<SelectiveCall>(kSelectiveScan, selective_scan_backends(), tensors, grads,
                                   options_of(options), run);
}
heed_status heed_lse_scan(const heed_lse_scan_tensors* tensors, const heed_lse_scan_tensors* grads,
                          const heed_run* run) {
  return run_from_c<LseCall>(kLseScan, lse_scan_backends(), tensors, grads, {}, run);
}

int64_t heed_ewscan_workspace(const heed_ewscan_tensors* tensors, const heed_ewscan_tensors* grads,
                              const heed_run* run) {
  return bytes_from_c<EwscanCall>(kEwscan, ewscan_backends(), tensors, grads, {}, run,
                                  Asks::kWorkspace);
}
int64_t heed_selective_scan_workspace(const heed_selective_scan_tensors* tensors,
                                      const heed_selective_scan_tensors* grads,
                                      const heed_selective_scan_options* options,
                                      const heed_run* run) {
  return bytes_from_c<SelectiveCall>(kSelectiveScan, selective_scan_backends(), tensors, grads,
                                     options_of(options), run, Asks::kWorkspace);
}
int64_t heed_lse_scan_workspace(const heed_lse_scan_tensors* tensors,
                                const heed_lse_scan_tensors* grads, const heed_run* run) {
  return bytes_from_c<LseCall>(kLseScan, lse_scan_backends(), tensors, grads, {}, run,
                               Asks::kWorkspace);
}

int64_t heed_ewscan_saved(const heed_ewscan_tensors* tensors, const heed_run* run) {
  return bytes_from_c<EwscanCall>(kEwscan, ewscan_backends(), tensors,
                                  static_cast<const heed_ewscan_tensors*>(nullptr), {}, run,
                                  Asks::kSaved);
}
int64_t heed_selective_scan_saved(const heed_selective_scan_tensors* tensors,
                                  const heed_selective_scan_options* options, const heed_run* run) {
  return bytes_from_c<SelectiveCall>(kSelectiveScan, selective_scan_backends(), tensors,
                                     static_cast<const heed_selective_scan_tensors*>(nullptr),
                                     options_of(options), run, Asks::kSaved);
}

}  // extern "C"
