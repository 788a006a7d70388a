// The operators torch.ops.heed.learn, learn_forward, learn_backward, learn_step.
#include <torch/library.h>

#include "op/dispatch.h"
#include "op/learn.h"

namespace heed::op {
namespace {

Engine& learn_engine() {
  static Engine instance(kernel::kLearn, naive_of<kernel::LearnCall, learn_recurrence>,
                         {&kernel::kLearnBackend, 1});
  return instance;
}

}  // namespace

void register_learn(torch::Library& library) { learn_engine().define(library); }

void learn(LearnTensors& x, const LearnOptions& options, const at::Tensor& cu_seqlens) {
  learn_engine().forward(tensor_list(x), &options, cu_seqlens);
}

void learn_naive(LearnTensors& x, const LearnOptions& options, const at::Tensor& cu_seqlens) {
  learn_engine().run_naive(tensor_list(x), &options, cu_seqlens);
}

void learn_step(LearnTensors& x, const LearnOptions& options) {
  learn_engine().step(tensor_list(x), &options);
}

}  // namespace heed::op
