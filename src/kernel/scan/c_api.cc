// The C entry points of include/heed/scan.h over the engine.
#include "kernel/call/c_api.h"

#include "heed/scan.h"
#include "kernel/scan/scan.h"

using namespace heed::kernel;  // NOLINT(google-build-using-namespace): C functions over one engine

static constexpr CEntry<ScanCall> kEntry(kScan, scan_backends, nullptr);

extern "C" {

void heed_scan_options_init(heed_scan_options* options) { kEntry.defaults(options); }

heed_status heed_scan(const heed_scan_tensors* tensors, const heed_scan_tensors* grads,
                      const heed_scan_options* options, const heed_run* run) {
  return kEntry.run(tensors, grads, options, run);
}

int64_t heed_scan_workspace(const heed_scan_tensors* tensors, const heed_scan_tensors* grads,
                            const heed_scan_options* options, const heed_run* run) {
  return kEntry.workspace(tensors, grads, options, run);
}

}  // extern "C"
