// The C entry points of include/heed/pool.h over the engine.
#include "kernel/call/c_api.h"

#include "heed/pool.h"
#include "kernel/pool/pool.h"

namespace {

using heed::kernel::PoolCall;

heed::kernel::PoolOptions options_of(const heed_pool_options* o) {
  if (o == nullptr) return {};
  return {o->scale, o->a0, o->a1, o->b0, o->b1, o->eps, o->by_count, o->clamp};
}

}  // namespace

extern "C" {

void heed_pool_options_init(heed_pool_options* options) { *options = {1, 1, 0, 0, 0, 0, 0, 0}; }

heed_status heed_pool(const heed_pool_tensors* tensors, const heed_pool_tensors* grads,
                      const heed_pool_options* options, const heed_run* run) {
  return heed::kernel::run_from_c<PoolCall>(heed::kernel::kPool, {&heed::kernel::kPoolBackend, 1},
                                            tensors, grads, options_of(options), run);
}

int64_t heed_pool_workspace(const heed_pool_tensors* tensors, const heed_pool_tensors* grads,
                            const heed_pool_options* options, const heed_run* run) {
  return heed::kernel::bytes_from_c<PoolCall>(heed::kernel::kPool, {&heed::kernel::kPoolBackend, 1},
                                              tensors, grads, options_of(options), run,
                                              heed::kernel::Asks::kWorkspace);
}

}  // extern "C"
