// The C entry points of include/heed/ewscan.h over the engine.
#include "kernel/call/c_api.h"

#include "heed/ewscan.h"
#include "kernel/ewscan/ewscan.h"

using namespace heed::kernel;  // NOLINT(google-build-using-namespace): C functions over one engine

namespace {

constexpr CEntry<EwscanCall> kPlain{kEwscan, ewscan_backends, call_check<EwscanCall, check_ewscan>};
constexpr CEntry<SelectiveCall> kSelective{kSelectiveScan, selective_scan_backends,
                                           call_check<SelectiveCall, check_selective_scan>};
constexpr CEntry<LseCall> kLse{kLseScan, lse_scan_backends, call_check<LseCall, check_lse_scan>};

}  // namespace

extern "C" {

void heed_selective_scan_options_init(heed_selective_scan_options* options) {
  kSelective.defaults(options);
}

heed_status heed_ewscan(const heed_ewscan_tensors* tensors, const heed_ewscan_tensors* grads,
                        const heed_run* run) {
  return kPlain.run(tensors, grads, kNoOptions, run);
}
heed_status heed_selective_scan(const heed_selective_scan_tensors* tensors,
                                const heed_selective_scan_tensors* grads,
                                const heed_selective_scan_options* options, const heed_run* run) {
  return kSelective.run(tensors, grads, options, run);
}
heed_status heed_lse_scan(const heed_lse_scan_tensors* tensors, const heed_lse_scan_tensors* grads,
                          const heed_run* run) {
  return kLse.run(tensors, grads, kNoOptions, run);
}

int64_t heed_ewscan_workspace(const heed_ewscan_tensors* tensors, const heed_ewscan_tensors* grads,
                              const heed_run* run) {
  return kPlain.workspace(tensors, grads, kNoOptions, run);
}
int64_t heed_selective_scan_workspace(const heed_selective_scan_tensors* tensors,
                                      const heed_selective_scan_tensors* grads,
                                      const heed_selective_scan_options* options,
                                      const heed_run* run) {
  return kSelective.workspace(tensors, grads, options, run);
}
int64_t heed_lse_scan_workspace(const heed_lse_scan_tensors* tensors,
                                const heed_lse_scan_tensors* grads, const heed_run* run) {
  return kLse.workspace(tensors, grads, kNoOptions, run);
}

int64_t heed_ewscan_saved(const heed_ewscan_tensors* tensors, const heed_run* run) {
  return kPlain.saved(tensors, kNoOptions, run);
}
int64_t heed_selective_scan_saved(const heed_selective_scan_tensors* tensors,
                                  const heed_selective_scan_options* options, const heed_run* run) {
  return kSelective.saved(tensors, options, run);
}

}  // extern "C"
