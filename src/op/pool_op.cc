// The operators torch.ops.heed.pool, pool_forward, pool_backward.
#include <torch/library.h>

#include "op/dispatch.h"
#include "op/pool.h"

namespace heed::op {
namespace {

void pool_form(PoolTensors& x, const PoolOptions& options) { x.out = pool_naive(x, options); }

Engine& pool_engine() {
  static Engine instance(kernel::kPool, naive_of<kernel::PoolCall, pool_form>,
                         {&kernel::kPoolBackend, 1});
  return instance;
}

}  // namespace

void register_pool(torch::Library& library) { pool_engine().define(library); }

at::Tensor pool(PoolTensors x, const PoolOptions& options, const at::Tensor& cu_seqlens) {
  pool_engine().forward(tensor_list(x), &options, cu_seqlens);
  return x.out;
}

}  // namespace heed::op
