// Native sparse attention: a query reads the means of all complete blocks, the tokens of a few
// blocks that those means point to, and a window; gates weigh the three. Yuan et al., "Native
// Sparse Attention", arXiv 2502.11089 (eqs. 5-12), with plain means as the compression.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "mixer/common/attend_core.h"
#include "mixer/common/dense_attention.h"

namespace heed::mixer {
namespace {

struct Sizes3 {
  int64_t batch, t, heads, kv_heads, block, blocks, all;  // all: blocks of the text
  int64_t complete() const { return t / block; }
};

// Means over the complete blocks: [B,T,J,K] -> [B,complete,J,K].
at::Tensor means(const at::Tensor& x, const Sizes3& s) {
  return x.slice(1, 0, s.complete() * s.block)
      .to(dense_type(x))
      .view({s.batch, s.complete(), s.block, x.size(2), x.size(3)})
      .mean(2);
}

// bool [tokens,complete]: whose last token is not behind the query, for queries begin .. end-1.
at::Tensor complete_at(int64_t begin, int64_t end, const Sizes3& s) {
  const at::Tensor t = at::arange(begin, end, at::kLong).unsqueeze(1);
  return at::arange(1, s.complete() + 1, at::kLong).mul(s.block).sub(1).unsqueeze(0).le(t);
}

// bool [B,J,tokens,all]: the blocks that queries begin .. end-1 read, from the compressed
// probabilities [B,H,tokens,complete].
at::Tensor select(const at::Tensor& p, int64_t begin, int64_t end, const Sizes3& s) {
  const at::Tensor own = at::floor_divide(at::arange(begin, end, at::kLong), s.block).unsqueeze(1);
  const at::Tensor c = at::arange(s.all, at::kLong).unsqueeze(0);
  const at::Tensor forced = c.eq(0).logical_or(c.eq(own)).logical_or(c.eq(own.sub(1)));
  const at::Tensor mean =
      p.view({s.batch, s.kv_heads, s.heads / s.kv_heads, end - begin, s.complete()}).mean(2);
  const double inf = std::numeric_limits<double>::infinity();
  at::Tensor score = at::full({s.batch, s.kv_heads, end - begin, s.all}, -inf, p.options());
  score.slice(3, 0, s.complete())
      .copy_(mean.masked_fill(complete_at(begin, end, s).logical_not(), -inf));
  score = score.masked_fill(forced, inf);
  // The forced ones come first; of equal scores the lower index.
  const auto [value, order] = at::sort(score, std::optional<bool>(true), 3, true);
  const at::Tensor taken = value.slice(3, 0, s.blocks).gt(-inf);
  return at::zeros(score.sizes(), at::kBool).scatter(3, order.slice(3, 0, s.blocks), taken);
}

at::Tensor from_indices(const at::Tensor& indices, const Sizes3& s) {
  // [B,T,J,S] -> [B,J,T,all]; -1 goes to a column that is cut off.
  const at::Tensor at_block = indices.permute({0, 2, 1, 3});
  const at::Tensor column = at_block.masked_fill(at_block.lt(0), s.all);
  return at::zeros({s.batch, s.kv_heads, s.t, s.all + 1}, at::kBool)
      .scatter(3, column, true)
      .slice(3, 0, s.all);
}

// The probabilities over compressed keys, for queries begin .. end-1.
std::pair<at::Tensor, at::Tensor> compressed(const at::Tensor& q, const at::Tensor& k,
                                             int64_t begin, int64_t end, double scale,
                                             const Sizes3& s) {
  const at::Tensor x = dense_logits(q.slice(1, begin, end), k, scale);
  return dense_softmax(x, complete_at(begin, end, s));
}

struct Branches {
  at::Tensor compressed, selected, window;  // [B,T,H,V]
};

Branches naive(const CoreCall& call, double scale, const Sizes3& s) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const int64_t window = call.settings.integer("window"), group = s.heads / s.kv_heads;
  const at::Tensor p = compressed(q, means(k, s), 0, s.t, scale, s).first;
  const at::Tensor indices = call.get("block_indices");
  const at::Tensor chosen =
      indices.defined() ? from_indices(indices, s) : select(p.detach(), 0, s.t, s);
  const at::Tensor causal = dense_visible(s.t, s.t, true, q.device());
  const at::Tensor x = dense_logits(q, k, scale);
  const at::Tensor open =
      chosen.repeat_interleave(s.block, 3).slice(3, 0, s.t).repeat_interleave(group, 1);
  Branches b;
  b.compressed = dense_values(p, means(v, s)).to(v.scalar_type());
  b.selected = dense_values(dense_softmax(x, open.logical_and(causal)).first, v);
  if (window > 0) b.window = dense_values(dense_softmax(x, causal.triu(1 - window)).first, v);
  return b;
}

// Query t + 1 of the row before it: then block i of the queries sees means 0 .. i - 1.
at::Tensor attend_means(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                        const Sizes3& s) {
  const int64_t rows = (s.t + 1 + s.block - 1) / s.block;
  const at::Tensor count = at::arange(rows, at::kLong).clamp_max(s.complete());
  op::AttendOptions options;
  options.scale = scale;
  options.q_block = s.block, options.k_block = 1;
  const at::Tensor start = at::cat({at::zeros({1}, at::kLong), count.cumsum(0)});
  options.block_start = start.expand({s.batch, s.kv_heads, rows + 1}).contiguous();
  std::vector<at::Tensor> lists = {at::zeros({0}, at::kInt)};
  for (int64_t i = 0; i < rows; ++i) {
    lists.push_back(at::arange(std::min(i, s.complete()), at::kInt));
  }
  options.block_index = at::cat(lists);
  const at::Tensor shifted = at::cat({at::zeros_like(q.slice(1, 0, 1)), q}, 1);
  const at::Tensor out = std::get<0>(op::attend(shifted, means(k, s).to(q.scalar_type()),
                                                means(v, s).to(q.scalar_type()), options));
  return out.slice(1, 1);
}

// Lists of the chosen blocks, found a run of queries at a time.
void set_lists(const CoreCall& call, double scale, const Sizes3& s, op::AttendOptions& options) {
  constexpr int64_t kRun = 512;
  const at::NoGradGuard no_grad;
  const at::Tensor q = call.get("q"), indices = call.get("block_indices");
  const at::Tensor k = means(call.get("k"), s);
  std::vector<at::Tensor> counts, runs;
  for (int64_t begin = 0; begin < s.t; begin += kRun) {
    const int64_t end = std::min(begin + kRun, s.t);
    at::Tensor chosen;
    if (indices.defined()) {
      Sizes3 run = s;
      run.t = end - begin;
      chosen = from_indices(indices.slice(1, begin, end), run);
    } else {
      chosen = select(compressed(q, k, begin, end, scale, s).first, begin, end, s);
    }
    counts.push_back(chosen.sum(3));         // [B,J,run]
    runs.push_back(chosen.transpose(0, 2));  // [run,J,B,all]
  }
  const at::Tensor count = at::cat(counts, 2);
  const at::Tensor ends = count.flatten().cumsum(0);
  const at::Tensor start = at::cat({at::zeros({1}, at::kLong), ends});
  options.block_start =
      start.unfold(0, s.t + 1, s.t).contiguous().view({s.batch, s.kv_heads, s.t + 1});
  std::vector<at::Tensor> lists;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t j = 0; j < s.kv_heads; ++j) {
      for (const at::Tensor& run : runs) {
        lists.push_back(run.select(1, j).select(1, b).nonzero().select(1, 1));
      }
    }
  }
  options.block_index = at::cat(lists).to(at::kInt);
}

Branches parallel(const CoreCall& call, double scale, const Sizes3& s) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  op::AttendOptions options;
  options.causal = true;
  options.scale = scale;
  Branches b;
  b.compressed = attend_means(q, k, v, scale, s);
  if (const int64_t window = call.settings.integer("window"); window > 0) {
    options.window = window;
    b.window = std::get<0>(op::attend(q, k, v, options));
    options.window = 0;
  }
  options.q_block = 1, options.k_block = s.block;
  set_lists(call, scale, s, options);
  b.selected = std::get<0>(op::attend(q, k, v, options));
  return b;
}

NamedTensors core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const double scale = call.settings.number("scale", 1 / std::sqrt(static_cast<double>(q.size(3))));
  const int64_t block = call.settings.integer("block");
  const Sizes3 s{q.size(0),
                 q.size(1),
                 q.size(2),
                 k.size(2),
                 block,
                 call.settings.integer("blocks"),
                 (q.size(1) + block - 1) / block};
  if (s.t == 0) return {{"out", v.new_zeros({s.batch, 0, s.heads, v.size(3)})}};
  const Branches b = call.form == "naive" ? naive(call, scale, s) : parallel(call, scale, s);
  const auto wide = dense_type(q);
  const auto gated = [&](const char* gate, const at::Tensor& o) {
    return call.get(gate).to(wide).unsqueeze(3).mul(o.to(wide));
  };
  at::Tensor out = gated("g_cmp", b.compressed).add(gated("g_slc", b.selected));
  if (b.window.defined()) out = out.add(gated("g_swa", b.window));
  return {{"out", out.to(v.scalar_type())}};
}

}  // namespace

void register_nsa(Registry& registry) {
  Mechanism m;
  m.card.id = "nsa";
  m.card.equations =
      "o_cmp: softmax attention over the means of the blocks complete at t\n"
      "o_slc: over tokens j <= t of `blocks` blocks: 0, t's, the one before, then by the "
      "compressed\n"
      "probability averaged over the group;  o_swa: over t - window < j <= t\n"
      "out = g_cmp o_cmp + g_slc o_slc + g_swa o_swa";
  m.card.state_size = "J (K+V) (T + T/block)";
  m.card.apply.inputs = {token("q", "B,T,H,K"),
                         token("k", "B,T,J,K"),
                         token("v", "B,T,J,V"),
                         gate("g_cmp", "B,T,H", Sample::kGate),
                         gate("g_slc", "B,T,H", Sample::kGate),
                         gate("g_swa", "B,T,H", Sample::kGate),
                         index("block_indices", "B,T,J,S", "ceil(T/block)", -1).maybe()};
  m.card.apply.settings = {int_setting("block", "64").at_least(1),
                           int_setting("blocks", "16").at_least(3),
                           int_setting("window", "512").at_least(0), scale_setting()};
  m.card.apply.outputs = {output("out", "B,T,H,V")};
  m.card.apply.forms = {"parallel", "naive"};
  TestCard& tests = m.card.tests;
  tests.heads = {"H", "J"};
  tests.sizes = {{"H", 4}, {"J", 2}, {"K", 9}, {"V", 6}, {"S", 1}};
  tests.large = {{"K", 64}, {"V", 64}};
  tests.timed = {{"block", "64"}, {"blocks", "16"}, {"window", "512"}};
  tests.always = {{"block", "8"}, {"blocks", "4"}, {"window", "12"}};
  tests.tries = {{{}, {}, {"block_indices"}},
                 {{{"window", "0"}, {"block", "5"}, {"blocks", "3"}}, {}, {"block_indices"}}};
  m.core = core;
  registry.add(std::move(m));
}

}  // namespace heed::mixer
