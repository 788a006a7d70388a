// The C entry points of include/heed/scan.h over the engine.
#include "kernel/call/c_api.h"

#include "heed/scan.h"
#include "kernel/scan/scan.h"

using namespace heed::kernel;  // NOLINT(google-build-using-namespace): C functions over one engine

namespace {

ScanOptions options_of(const heed_scan_options* options) {
  if (options == nullptr) return {};
  return {options->scale, options->read_before, options->chunk};
}

}  // namespace

extern "C" {

void heed_scan_options_init(heed_scan_options* options) { *options = {1, 0, 64}; }

heed_status heed_scan(const heed_scan_tensors* tensors, const heed_scan_tensors* grads,
                      const heed_scan_options* options, const heed_run* run) {
  return run_from_c<ScanCall>(kScan, scan_backends(), tensors, grads, options_of(options), run);
}

int64_t heed_scan_workspace(const heed_scan_tensors* tensors, const heed_scan_tensors* grads,
                            const heed_scan_options* options, const heed_run* run) {
  return bytes_from_c<ScanCall>(kScan, scan_backends(), tensors, grads, options_of(options), run,
                                Asks::kWorkspace);
}

}  // extern "C"
