// The operator torch.ops.heed.merge: results of softmax attention over disjoint sets of keys into
// the result over their union (Flash-Decoding's rule, arXiv 2205.14135). Made of PyTorch's
// operators, so that its gradients are theirs.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "io/error.h"
#include "op/attend.h"
#include "op/describe.h"

namespace heed::op {

std::tuple<at::Tensor, at::Tensor> merge(const std::vector<at::Tensor>& outs,
                                         const std::vector<at::Tensor>& lses) {
  if (outs.empty() || outs.size() != lses.size()) {
    throw UsageError("merge: {} outs and {} lses, expected as many and at least one", outs.size(),
                     lses.size());
  }
  const at::ScalarType compute = outs[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  for (size_t i = 0; i < outs.size(); ++i) {
    if (outs[i].dim() != 4 || outs[i].sizes() != outs[0].sizes() ||
        outs[i].scalar_type() != outs[0].scalar_type()) {
      throw UsageError(
          "merge: outs[{}] has shape {} and outs[0] {}, expected one [B,T,H,D] and dtype", i,
          sizes_of(outs[i]), sizes_of(outs[0]));
    }
    if (lses[i].sizes() != outs[0].sizes().slice(0, 3) || lses[i].scalar_type() != compute) {
      throw UsageError("merge: lses[{}] has shape {}, expected {} = [B,T,H] in {}", i,
                       sizes_of(lses[i]), sizes_of(outs[0].sizes().slice(0, 3)),
                       c10::toString(compute));
    }
  }
  const double inf = std::numeric_limits<double>::infinity();
  const at::Tensor x = at::stack(lses);  // [P,B,T,H]
  const at::Tensor empty = x.detach().eq(-inf);
  at::Tensor m = x.detach().amax(0);
  m = m.masked_fill(m.eq(-inf), 0.0);
  const at::Tensor e = at::exp(x.sub(m)).masked_fill(empty, 0.0);
  const at::Tensor sum = e.sum(0);
  const at::Tensor blind = sum.detach().eq(0);
  const at::Tensor seen = sum.masked_fill(blind, 1.0);
  at::Tensor out = at::zeros(outs[0].sizes(), outs[0].options().dtype(compute));
  for (size_t i = 0; i < outs.size(); ++i) {
    const at::Tensor part = outs[i].to(compute).masked_fill(empty.select(0, i).unsqueeze(-1), 0.0);
    out = out.add(part.mul(e.select(0, i).div(seen).unsqueeze(-1)));
  }
  return {out.to(outs[0].scalar_type()), at::log(seen).add(m).masked_fill(blind, -inf)};
}

namespace {

std::tuple<at::Tensor, at::Tensor> merge_lists(at::TensorList outs, at::TensorList lses) {
  return merge(outs.vec(), lses.vec());
}

}  // namespace

void register_merge(torch::Library& library) {
  library.def("merge(Tensor[] outs, Tensor[] lses) -> (Tensor out, Tensor lse)");
  for (const auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::Meta,
                         c10::DispatchKey::Autograd}) {
    library.impl("merge", torch::dispatch(key, TORCH_FN(merge_lists)));
  }
}

}  // namespace heed::op
