// The C entry points of include/heed/learn.h over the engine.
#include "kernel/call/c_api.h"

#include "heed/learn.h"
#include "kernel/learn/problem.h"

using namespace heed::kernel;  // NOLINT(google-build-using-namespace): C functions over one engine

namespace {

std::span<const heed_backend> backends() { return {&kLearnBackend, 1}; }
heed_status check(const void* call, int32_t pass, heed_message* message) {
  LearnProblem problem;
  return check_learn(*static_cast<const LearnCall*>(call), pass, CallDtypes::kKernel, &problem,
                     message);
}
constexpr CEntry<LearnCall> kEntry{kLearn, backends, check};

}  // namespace

extern "C" {

void heed_learn_options_init(heed_learn_options* options) { kEntry.defaults(options); }

heed_status heed_learn(const heed_learn_tensors* tensors, const heed_learn_tensors* grads,
                       const heed_learn_options* options, const heed_run* run) {
  return kEntry.run(tensors, grads, options, run);
}

int64_t heed_learn_workspace(const heed_learn_tensors* tensors, const heed_learn_tensors* grads,
                             const heed_learn_options* options, const heed_run* run) {
  return kEntry.workspace(tensors, grads, options, run);
}

}  // extern "C"
