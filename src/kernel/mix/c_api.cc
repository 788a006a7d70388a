// The C entry points of include/heed/mix.h over the engine.
#include "kernel/call/c_api.h"

#include "heed/mix.h"
#include "kernel/mix/mix.h"

using namespace heed::kernel;  // NOLINT(google-build-using-namespace): C functions over one engine

namespace {

constexpr CEntry<ShortConvCall> kEntry{kShortConv, short_conv_backends,
                                       call_check<ShortConvCall, check_short_conv>};

}  // namespace

extern "C" {

void heed_short_conv_options_init(heed_short_conv_options* options) { kEntry.defaults(options); }

heed_status heed_short_conv(const heed_short_conv_tensors* tensors,
                            const heed_short_conv_tensors* grads,
                            const heed_short_conv_options* options, const heed_run* run) {
  return kEntry.run(tensors, grads, options, run);
}

int64_t heed_short_conv_workspace(const heed_short_conv_tensors* tensors,
                                  const heed_short_conv_tensors* grads,
                                  const heed_short_conv_options* options, const heed_run* run) {
  return kEntry.workspace(tensors, grads, options, run);
}

}  // extern "C"
