// Pairwise attention against PyTorch's scaled_dot_product_attention: whole sequences, forward and
// with gradients, and one decoding step over a cache.
//
// With P = T (T + 1) / 2 visible pairs a head (causal): forward 2 (D + Dv) P flops, gradients
// 2 (3 D + 2 Dv) P more (logits again, and the four products of their own); decoding 2 (D + Dv) a
// key. Bytes: every input read and every output written once.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

#include "bench/cases.h"
#include "cache/rows.h"
#include "op/attend.h"

namespace heed::bench {
namespace {

using at::Tensor;

struct Shape {
  int64_t tokens, dim, heads, kv_heads;
};

Json shape_json(const Shape& s) {
  return {{"B", 1},           {"T", s.tokens}, {"H", s.heads},
          {"Hk", s.kv_heads}, {"Dk", s.dim},   {"Dv", s.dim}};
}

std::string name_of(const Shape& s, const char* tokens) {
  return shape_name({{tokens, s.tokens}, {"D", s.dim}, {"H", s.heads}, {"Hk", s.kv_heads}});
}

struct Inputs {
  Tensor q, k, v, grad_out;               // ours, [1, T, H, D]
  Tensor peer_q, peer_k, peer_v, peer_g;  // the same values as [1, H, T, D], PyTorch's own layout
};

Inputs make_inputs(const Shape& s, bool gradients, const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  Inputs x;
  x.q = at::randn({1, s.tokens, s.heads, s.dim}, options);
  x.k = at::randn({1, s.tokens, s.kv_heads, s.dim}, options);
  x.v = at::randn({1, s.tokens, s.kv_heads, s.dim}, options);
  const auto peer = [](const Tensor& t) { return t.transpose(1, 2).contiguous(); };
  x.peer_q = peer(x.q), x.peer_k = peer(x.k), x.peer_v = peer(x.v);
  if (gradients) {
    x.grad_out = at::randn_like(x.q);
    x.peer_g = peer(x.grad_out);
    for (Tensor* t : {&x.q, &x.k, &x.v, &x.peer_q, &x.peer_k, &x.peer_v}) t->requires_grad_(true);
  }
  return x;
}

Tensor peer_attention(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  return at::scaled_dot_product_attention(q, k, v, std::nullopt, 0.0, causal, std::nullopt,
                                          q.size(1) != k.size(1));
}

// Rows [end - n, end) of the output by the formulas in float64, for a few places of the sequence.
double forward_error(const Inputs& x, const Tensor& out) {
  const int64_t tokens = out.size(1), n = std::min<int64_t>(16, tokens);
  std::vector<Tensor> got, expected;
  op::AttendOptions causal;
  causal.causal = true;
  for (const int64_t end : {n, (tokens + n) / 2, tokens}) {
    const auto rows = [&](const Tensor& t, int64_t begin) {
      return t.detach().slice(1, begin, end).to(at::kDouble);
    };
    expected.push_back(
        std::get<0>(op::attend_naive(rows(x.q, end - n), rows(x.k, 0), rows(x.v, 0), causal)));
    got.push_back(out.detach().slice(1, end - n, end));
  }
  return relative_error(at::cat(got, 1), at::cat(expected, 1));
}

// Gradients of the query heads that read KV head 0: outputs are {out, grad_q, grad_k, grad_v}.
std::vector<Checked> gradient_errors(const Inputs& x, const std::vector<Tensor>& outputs) {
  const int64_t group = x.q.size(2) / x.k.size(2);
  const auto heads = [](const Tensor& t, int64_t n) {
    return t.detach().slice(2, 0, n).to(at::kDouble).contiguous();
  };
  const at::AutoGradMode with_gradients(true);
  std::vector<Tensor> leaves = {heads(x.q, group), heads(x.k, 1), heads(x.v, 1)};
  for (Tensor& t : leaves) t.requires_grad_(true);
  op::AttendOptions causal;
  causal.causal = true;
  const Tensor out = std::get<0>(op::attend_naive(leaves[0], leaves[1], leaves[2], causal));
  const auto grads = torch::autograd::grad({out}, leaves, {heads(x.grad_out, group)});
  return {{"out", relative_error(heads(outputs[0], group), out.detach()), forward_bound("float32")},
          {"grad_q", relative_error(heads(outputs[1], group), grads[0]), backward_bound("float32")},
          {"grad_k", relative_error(heads(outputs[2], 1), grads[1]), backward_bound("float32")},
          {"grad_v", relative_error(heads(outputs[3], 1), grads[2]), backward_bound("float32")}};
}

Contender pytorch(std::function<std::vector<Tensor>(int64_t)> run) {
  Contender c;
  c.name = "pytorch-sdpa";
  c.version = TORCH_VERSION;
  c.run = std::move(run);
  return c;
}

Work sequence_work(const Shape& s, bool gradients, const at::Device& device) {
  const int64_t set_bytes =
      4 * s.tokens * s.dim * (2 * s.heads + 2 * s.kv_heads) * (gradients ? 2 : 1);
  Work work;
  work.sets = sets_of(set_bytes);
  auto inputs = std::make_shared<std::vector<Inputs>>();
  for (int64_t i = 0; i < work.sets; ++i) inputs->push_back(make_inputs(s, gradients, device));
  work.ours.run = [inputs, gradients](int64_t set) -> std::vector<Tensor> {
    const Inputs& x = (*inputs)[set];
    const at::AutoGradMode mode(gradients);
    op::AttendOptions causal;
    causal.causal = true;
    const Tensor out = std::get<0>(op::attend(x.q, x.k, x.v, causal));
    if (!gradients) return {out};
    const auto g = torch::autograd::grad({out}, {x.q, x.k, x.v}, {x.grad_out});
    return {out.detach(), g[0], g[1], g[2]};
  };
  work.peers.push_back(pytorch([inputs, gradients](int64_t set) -> std::vector<Tensor> {
    const Inputs& x = (*inputs)[set];
    const at::AutoGradMode mode(gradients);
    const Tensor out = peer_attention(x.peer_q, x.peer_k, x.peer_v, true);
    const auto ours = [](const Tensor& t) { return t.detach().transpose(1, 2); };
    if (!gradients) return {ours(out)};
    const auto g = torch::autograd::grad({out}, {x.peer_q, x.peer_k, x.peer_v}, {x.peer_g});
    return {ours(out), ours(g[0]), ours(g[1]), ours(g[2])};
  }));
  work.check = [inputs, gradients](int64_t set, const std::vector<Tensor>& outputs) {
    const Inputs& x = (*inputs)[set];
    if (gradients) return gradient_errors(x, outputs);
    return std::vector<Checked>{{"out", forward_error(x, outputs[0]), forward_bound("float32")}};
  };
  return work;
}

Case sequence_case(const Shape& s, bool gradients) {
  Case c;
  c.op = "attend";
  c.pass = gradients ? "forward_backward" : "forward";
  c.dtype = "float32";
  c.shape = shape_json(s);
  c.name = fmt::format("attend/{}/float32/{}", c.pass, name_of(s, "T"));
  const int64_t pairs = s.tokens * (s.tokens + 1) / 2 * s.heads;
  const int64_t q = s.tokens * s.heads * s.dim, kv = s.tokens * s.kv_heads * s.dim;
  c.flops = 4 * s.dim * pairs;
  c.bytes = 4 * (2 * q + 2 * kv);
  if (gradients) {
    c.flops += 10 * s.dim * pairs;
    c.bytes += 4 * (2 * q + 2 * kv);  // grad_out is read, three gradients are written
  }
  c.make = [s, gradients](const at::Device& device) { return sequence_work(s, gradients, device); };
  return c;
}

// ---- decoding: one query a head over a cache of pages, as a model's step runs it ----------------

struct Cache {
  std::unique_ptr<Rows> state;
  std::vector<kernel::Segment> segments;
  std::vector<kernel::AttendJob> jobs;
  kernel::AttendTable table;
  Tensor q, out;                  // float32 [H, D]
  Tensor peer_q, peer_k, peer_v;  // float16, [1, H, 1 or T, D]
};

void fill_cache(Cache& c, const Shape& s) {
  RowsPart part;
  part.k_dim = part.v_dim = s.dim;
  part.dtype = at::kHalf;
  part.programs.resize(s.kv_heads);
  c.state = std::make_unique<Rows>(part, at::kCPU);
  const Tensor k = at::randn({s.tokens, s.kv_heads, s.dim}).to(at::kHalf);
  const Tensor v = at::randn({s.tokens, s.kv_heads, s.dim}).to(at::kHalf);
  c.state->append(k, v);
  c.q = at::randn({s.heads, s.dim}).to(at::kHalf).to(at::kFloat);
  c.out = at::empty_like(c.q);
  const int64_t group = s.heads / s.kv_heads;
  std::vector<size_t> begin;
  for (int64_t h = 0; h < s.kv_heads; ++h) {
    begin.push_back(c.segments.size());
    c.state->add_segments(h, c.segments);
  }
  begin.push_back(c.segments.size());
  for (int64_t h = 0; h < s.kv_heads; ++h) {
    kernel::AttendJob job;
    job.q = c.q.const_data_ptr<float>() + h * group * s.dim;
    job.out = c.out.data_ptr<float>() + h * group * s.dim;
    job.q_stride = job.out_stride = group * s.dim;
    job.q_head_stride = job.out_head_stride = s.dim;
    job.queries = 1;
    job.q_position = s.tokens - 1;
    job.segments = c.segments.data() + begin[h];
    job.segment_count = static_cast<int32_t>(begin[h + 1] - begin[h]);
    c.jobs.push_back(job);
  }
  c.table.jobs = c.jobs.data();
  c.table.job_count = s.kv_heads;
  c.table.group = static_cast<int32_t>(group);
  c.table.head_dim = c.table.value_dim = static_cast<int32_t>(s.dim);
  c.table.kv_dtype = HEED_FLOAT16;
  c.table.scale = 1 / std::sqrt(static_cast<float>(s.dim));
  const auto peer = [](const Tensor& t) { return t.transpose(0, 1).unsqueeze(0).contiguous(); };
  c.peer_k = peer(k), c.peer_v = peer(v);
  c.peer_q = c.q.to(at::kHalf).view({1, s.heads, 1, s.dim});
}

Work decode_work(const Shape& s) {
  Work work;
  work.sets = sets_of(4 * s.tokens * s.kv_heads * s.dim);
  auto caches = std::make_shared<std::vector<Cache>>(work.sets);
  for (Cache& c : *caches) fill_cache(c, s);
  work.ours.run = [caches](int64_t set) -> std::vector<Tensor> {
    Cache& c = (*caches)[set];
    op::attend_jobs(c.table);
    return {c.out};
  };
  work.peers.push_back(pytorch([caches](int64_t set) -> std::vector<Tensor> {
    const Cache& c = (*caches)[set];
    return {peer_attention(c.peer_q, c.peer_k, c.peer_v, false).view_as(c.q)};
  }));
  work.check = [caches](int64_t set, const std::vector<Tensor>& outputs) {
    const Cache& c = (*caches)[set];
    const auto wide = [](const Tensor& t) { return t.transpose(1, 2).to(at::kDouble); };
    const Tensor expected = std::get<0>(op::attend_naive(
        wide(c.q.view({1, c.q.size(0), 1, c.q.size(1)})), wide(c.peer_k), wide(c.peer_v)));
    // The cache's values are taken as they are: what is left is float32 arithmetic.
    return std::vector<Checked>{
        {"out", relative_error(outputs[0], expected.view(c.q.sizes())), forward_bound("float32")}};
  };
  return work;
}

Case decode_case(const Shape& s) {
  Case c;
  c.op = "attend";
  c.pass = "decode";
  c.dtype = "float16";
  c.arithmetic = "float32";
  c.shape = shape_json(s);
  c.shape["T"] = 1;
  c.shape["context"] = s.tokens;
  c.name = fmt::format("attend/decode/float16/{}", name_of(s, "context"));
  c.flops = 4 * s.dim * s.tokens * s.heads;
  c.bytes = 4 * s.tokens * s.kv_heads * s.dim + 8 * s.heads * s.dim;
  c.cuda = false;
  c.make = [s](const at::Device&) { return decode_work(s); };
  return c;
}

}  // namespace

std::vector<Case> attend_cases(bool quick) {
  std::vector<Case> cases;
  const auto lengths =
      quick ? std::vector<int64_t>{512} : std::vector<int64_t>{512, 1024, 2048, 4096, 8192};
  for (const int64_t dim : {64, 128}) {
    for (const int64_t tokens : lengths) cases.push_back(sequence_case({tokens, dim, 8, 8}, false));
    cases.push_back(sequence_case({quick ? 512 : 4096, dim, 8, 2}, false));
  }
  for (const int64_t dim : {64, 128}) {
    for (const int64_t tokens : lengths) {
      if (tokens <= 4096) cases.push_back(sequence_case({tokens, dim, 8, 8}, true));
    }
  }
  const auto contexts = quick ? std::vector<int64_t>{4096} : std::vector<int64_t>{4096, 32768};
  for (const int64_t dim : {64, 128}) {
    for (const int64_t context : contexts) {
      cases.push_back(decode_case({context, dim, 8, 8}));
      cases.push_back(decode_case({context, dim, 8, 2}));
    }
  }
  return cases;
}

}  // namespace heed::bench
