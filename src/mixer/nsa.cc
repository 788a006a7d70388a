// Native sparse attention: a query reads the means of all complete blocks, the tokens of a few
// blocks that those means point to, and a window; gates weigh the three. Yuan et al., "Native
// Sparse Attention", arXiv 2502.11089 (eqs. 5-12), with plain means as the compression.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "mixer/common/attend_core.h"
#include "mixer/common/core_layer.h"
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

// The probabilities over compressed keys, for queries q that stand at begin and on.
at::Tensor compressed(const at::Tensor& q, const at::Tensor& k, int64_t begin, double scale,
                      const Sizes3& s) {
  const at::Tensor x = dense_logits(q, k, scale);
  return dense_softmax(x, complete_at(begin, begin + q.size(1), s)).first;
}

struct Branches {
  at::Tensor compressed, selected, window;  // [B,T,H,V]
};

Branches naive(const CoreCall& call, double scale, const Sizes3& s) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const int64_t window = call.settings.integer("window"), group = s.heads / s.kv_heads;
  const at::Tensor p = compressed(q, means(k, s), 0, scale, s);
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

constexpr int64_t kRun = 512;  // queries whose probabilities over compressed keys exist at a time

// Lists of the chosen blocks from `chosen`, bool [B,J,run,all] of one run of queries after another.
void set_lists(const std::vector<at::Tensor>& chosen, const Sizes3& s, op::AttendOptions& options) {
  std::vector<at::Tensor> counts, runs;
  for (const at::Tensor& run : chosen) {
    counts.push_back(run.sum(3));         // [B,J,run]
    runs.push_back(run.transpose(0, 2));  // [run,J,B,all]
  }
  const at::Tensor count = at::cat(counts, 2);
  const int64_t queries = count.size(2);
  const at::Tensor ends = count.flatten().cumsum(0);
  const at::Tensor start = at::cat({at::zeros({1}, at::kLong), ends});
  options.q_block = 1, options.k_block = s.block;
  options.block_start =
      start.unfold(0, queries + 1, queries).contiguous().view({s.batch, s.kv_heads, queries + 1});
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

std::vector<at::Tensor> choose(const CoreCall& call, double scale, const Sizes3& s) {
  const at::NoGradGuard no_grad;
  const at::Tensor q = call.get("q"), indices = call.get("block_indices");
  const at::Tensor k = means(call.get("k"), s);
  std::vector<at::Tensor> chosen;
  for (int64_t begin = 0; begin < s.t; begin += kRun) {
    const int64_t end = std::min(begin + kRun, s.t);
    if (indices.defined()) {
      Sizes3 run = s;
      run.t = end - begin;
      chosen.push_back(from_indices(indices.slice(1, begin, end), run));
    } else {
      chosen.push_back(
          select(compressed(q.slice(1, begin, end), k, begin, scale, s), begin, end, s));
    }
  }
  return chosen;
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
  set_lists(choose(call, scale, s), s, options);
  b.selected = std::get<0>(op::attend(q, k, v, options));
  return b;
}

// Gates [B,T,H] times their branches, in the branches' dtype.
at::Tensor gated(const Branches& b, const at::Tensor& g_cmp, const at::Tensor& g_slc,
                 const at::Tensor& g_swa) {
  const auto wide = dense_type(b.selected);
  const auto times = [&](const at::Tensor& gate, const at::Tensor& o) {
    return gate.to(wide).unsqueeze(3).mul(o.to(wide));
  };
  at::Tensor out = times(g_cmp, b.compressed).add(times(g_slc, b.selected));
  if (b.window.defined()) out = out.add(times(g_swa, b.window));
  return out.to(b.selected.scalar_type());
}

NamedTensors nsa_core(const CoreCall& call) {
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
  return {{"out", gated(b, call.get("g_cmp"), call.get("g_slc"), call.get("g_swa"))}};
}

// g = sigmoid(x Wg), three a head. The cache holds all keys and values, and their means over every
// complete block.
class NsaLayer final : public CoreLayer {
 public:
  explicit NsaLayer(const LayerConfig& config)
      : CoreLayer("nsa", config, kWindow | kKeySet, {"block", "blocks", "window"}) {
    options_.close();
    params_.matrix(gates_, "g_proj.weight", 3 * view().heads, config.hidden);
    rewrites_heads_ = true;
  }
  bool takes(Pattern pattern) const override { return pattern == Pattern::kCausalSelf; }
  StateSpec state(const StateRequest& request) const override {
    StateSpec spec = AttentionLayer::state(request);
    RowsPart rows = std::get<RowsPart>(spec.parts[0]);
    rows.grouped = true;
    spec.parts[0] = rows;
    rows.name = "compressed";
    rows.every = settings().integer("block");
    spec.parts.push_back(rows);
    return spec;
  }

 protected:
  void before_rope(const at::Tensor& x, Heads& h) override {
    h.extra =
        at::sigmoid(linear(x, gates_).to(at::kFloat)).flatten(0, 1).unflatten(1, {3, view().heads});
  }
  void more_inputs(const Heads& h, const Sequences& part, CoreCall& call) override {
    const at::Tensor g = part(h.extra);
    call.in["g_cmp"] = g.select(2, 0), call.in["g_slc"] = g.select(2, 1);
    call.in["g_swa"] = g.select(2, 2);
  }
  at::Tensor mix(Heads& h, op::AttendOptions options) override {
    if (h.call.states.empty()) return CoreLayer::mix(h, options);
    return over_states(
        h, [&](const Sequences& part, State& state, const at::Tensor& k, const at::Tensor& v) {
          const at::Tensor g = part(h.extra);
          return gated(decode(part(h.q), k, v, state.rows(1), *options.scale), g.select(2, 0),
                       g.select(2, 1), g.select(2, 2));
        });
  }

 private:
  // q [1,T,H,K]: the last T tokens of those that are held.
  Branches decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Rows& rows,
                  double scale) const {
    const int64_t past = k.size(1) - q.size(1), block = settings().integer("block");
    const Sizes3 s{1,
                   k.size(1),
                   q.size(2),
                   k.size(2),
                   block,
                   settings().integer("blocks"),
                   (k.size(1) + block - 1) / block};
    if (const int64_t first = rows.length() * block; s.complete() > rows.length()) {
      Sizes3 fresh = s;
      fresh.t = s.complete() * block - first;
      const auto new_means = [&](const at::Tensor& t) {
        return means(t.slice(1, first), fresh).squeeze(0);
      };
      rows.append(new_means(k), new_means(v));
    }
    const auto [kc, vc] = held(rows, dense_type(q));
    Branches b;
    std::vector<at::Tensor> read, chosen;
    for (int64_t begin = 0; begin < q.size(1); begin += kRun) {
      const at::Tensor run = q.slice(1, begin, std::min(begin + kRun, q.size(1)));
      const at::Tensor p = compressed(run, kc, past + begin, scale, s);
      read.push_back(dense_values(p, vc));
      chosen.push_back(select(p, past + begin, past + begin + run.size(1), s));
    }
    b.compressed = at::cat(read, 1);
    op::AttendOptions options;
    options.causal = true;
    options.scale = scale;
    options.window = settings().integer("window");
    if (options.window > 0) b.window = std::get<0>(op::attend(q, k, v, options));
    options.window = 0;
    set_lists(chosen, s, options);
    b.selected = std::get<0>(op::attend(q, k, v, options));
    return b;
  }

  Weight gates_;
};

}  // namespace

void register_nsa(Registry& registry) {
  Mechanism m;
  m.card.id = "nsa";
  m.card.equations =
      "o_cmp: softmax attention over the means of the blocks complete at t\n"
      "o_slc: over tokens j <= t of `blocks` blocks: 0, t's, the one before, then by the "
      "compressed\n"
      "probability averaged over the group, or those of block_indices (-1: none) in their place\n"
      "o_swa: over t - window < j <= t; 0 if window is 0\n"
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
  tests.layer.options = R"({"block": 8, "blocks": 4, "window": 12})";
  m.core = nsa_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<NsaLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
