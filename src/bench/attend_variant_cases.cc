// Benchmarks of attend's variants: other weights than softmax (variants.inc) and a bias by
// distance, causal, beside the same mathematics in PyTorch's operators on whole matrices of logits
// (a bias: scaled_dot_product_attention with the mask that the table makes).
//
// Flops as in attend_cases.cc.
#include <ATen/ATen.h>

#include "bench/call_cases.h"
#include "op/attend.h"

namespace heed::bench {
namespace {

using at::Tensor;

// table[h, T-1 + j - i], [H,T,T].
Tensor by_distance(const Tensor& table, int64_t tokens) {
  const Tensor at = at::arange(tokens, table.options().dtype(at::kLong));
  const Tensor distance = at.unsqueeze(0).sub(at.unsqueeze(1)).add(tokens - 1);
  return table.index_select(1, distance.flatten()).view({-1, tokens, tokens});
}
Tensor later(const Tensor& like, int64_t tokens) {  // pairs that a causal query does not see
  return at::ones({tokens, tokens}, like.options().dtype(at::kBool)).triu(1);
}
Tensor logits(const std::vector<Tensor>& x) {
  return at::matmul(x[0], x[1].transpose(-1, -2)).mul(1 / std::sqrt(x[0].size(-1)));
}

CallKind variant(const char* name, const char* peer, int64_t tokens, int64_t heads, int64_t width) {
  CallKind k;
  k.engine = "attend";
  k.name = name;
  k.peer = peer;
  k.heads_first = true;
  k.sizes = {{"T", tokens}, {"D", width}, {"H", heads}};
  k.flops = 4 * width * heads * (tokens * (tokens + 1) / 2);
  k.out = tokens * heads * width;
  return k;
}

std::vector<Tensor> inputs(int64_t tokens, int64_t heads, int64_t width, bool table) {
  std::vector<Tensor> x;
  for (int i = 0; i < 3; ++i) x.push_back(at::randn({1, tokens, heads, width}));
  if (table) x.push_back(at::rand({heads, 2 * tokens - 1}).add(0.5));
  return x;
}

op::AttendOptions causal(kernel::Weight weight = kernel::Weight::kSoftmax) {
  op::AttendOptions o;
  o.causal = true;
  o.weight = weight;
  return o;
}

CallKind sigmoid(int64_t tokens, int64_t heads, int64_t width) {
  CallKind k = variant("sigmoid", "pytorch-operators", tokens, heads, width);
  k.inputs = [=] { return inputs(tokens, heads, width, false); };
  k.ours = [](const auto& x) {
    return std::get<0>(op::attend(x[0], x[1], x[2], causal(kernel::Weight::kSigmoid)));
  };
  k.peers = [=](const auto& x) {
    const Tensor y = logits(x).sub(std::log(static_cast<double>(tokens)));
    return at::matmul(y.sigmoid().tril(), x[2]);
  };
  return k;
}

CallKind urpe(int64_t tokens, int64_t heads, int64_t width) {
  CallKind k = variant("urpe", "pytorch-operators", tokens, heads, width);
  k.inputs = [=] { return inputs(tokens, heads, width, true); };
  k.ours = [](const auto& x) {
    op::AttendOptions o = causal(kernel::Weight::kUrpe);
    o.relative_scale = x[3];
    return std::get<0>(op::attend(x[0], x[1], x[2], o));
  };
  k.peers = [=](const auto& x) {
    const Tensor y =
        logits(x).masked_fill(later(x[0], tokens), -std::numeric_limits<double>::infinity());
    return at::matmul(y.softmax(-1).mul(by_distance(x[3], tokens)), x[2]);
  };
  return k;
}

CallKind bias(int64_t tokens, int64_t heads, int64_t width) {
  CallKind k = variant("bias", "pytorch-sdpa", tokens, heads, width);
  k.inputs = [=] { return inputs(tokens, heads, width, true); };
  k.ours = [](const auto& x) {
    op::AttendOptions o = causal();
    o.relative_bias = x[3];
    return std::get<0>(op::attend(x[0], x[1], x[2], o));
  };
  k.peers = [=](const auto& x) {
    const Tensor mask =
        by_distance(x[3], tokens)
            .masked_fill(later(x[0], tokens), -std::numeric_limits<double>::infinity());
    return at::scaled_dot_product_attention(x[0], x[1], x[2], mask.unsqueeze(0));
  };
  return k;
}

}  // namespace

std::vector<Case> attend_variant_cases(bool quick) {
  const int64_t tokens = quick ? 256 : 2048;
  std::vector<Case> cases;
  for (const bool backward : {false, true}) {
    const int64_t t = backward ? std::min<int64_t>(tokens, 1024) : tokens;
    for (CallKind k : {sigmoid(t, 8, 64), urpe(t, 8, 64), bias(t, 8, 64)}) {
      k.backward = backward;
      cases.push_back(call_case(k));
    }
  }
  return cases;
}

}  // namespace heed::bench
