// The C entry points of include/heed/pool.h over the engine.
#include "kernel/call/c_api.h"

#include "heed/pool.h"
#include "kernel/pool/problem.h"

using namespace heed::kernel;  // NOLINT(google-build-using-namespace): C functions over one engine

namespace {

std::span<const heed_backend> backends() { return {&kPoolBackend, 1}; }
heed_status check(const void* call, int32_t pass, heed_message* message) {
  PoolProblem problem;
  return check_pool(*static_cast<const PoolCall*>(call), pass, CallDtypes::kKernel, 1, &problem,
                    message);
}
constexpr CEntry<PoolCall> kEntry{kPool, backends, check};

}  // namespace

extern "C" {

void heed_pool_options_init(heed_pool_options* options) { kEntry.defaults(options); }

heed_status heed_pool(const heed_pool_tensors* tensors, const heed_pool_tensors* grads,
                      const heed_pool_options* options, const heed_run* run) {
  return kEntry.run(tensors, grads, options, run);
}

int64_t heed_pool_workspace(const heed_pool_tensors* tensors, const heed_pool_tensors* grads,
                            const heed_pool_options* options, const heed_run* run) {
  return kEntry.workspace(tensors, grads, options, run);
}

}  // extern "C"
