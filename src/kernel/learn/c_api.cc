// The C entry points of include/heed/learn.h over the engine.
#include "kernel/call/c_api.h"

#include "heed/learn.h"
#include "kernel/learn/learn.h"

namespace {

using heed::kernel::LearnCall;

heed::kernel::LearnOptions options_of(const heed_learn_options* o) {
  if (o == nullptr) return {};
  return {o->scale, o->eps, o->chunk, o->norm, o->bias};
}

}  // namespace

extern "C" {

void heed_learn_options_init(heed_learn_options* options) { *options = {1, 1e-6, 1, 0, 0}; }

heed_status heed_learn(const heed_learn_tensors* tensors, const heed_learn_tensors* grads,
                       const heed_learn_options* options, const heed_run* run) {
  return heed::kernel::run_from_c<LearnCall>(heed::kernel::kLearn,
                                             {&heed::kernel::kLearnBackend, 1}, tensors, grads,
                                             options_of(options), run);
}

int64_t heed_learn_workspace(const heed_learn_tensors* tensors, const heed_learn_tensors* grads,
                             const heed_learn_options* options, const heed_run* run) {
  return heed::kernel::bytes_from_c<LearnCall>(
      heed::kernel::kLearn, {&heed::kernel::kLearnBackend, 1}, tensors, grads, options_of(options),
      run, heed::kernel::Asks::kWorkspace);
}

}  // extern "C"
