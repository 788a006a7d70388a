// HiP attention: for each block of queries a tree search picks the key blocks that matter, by the
// scores of one representative block of each half; the queries then see those blocks, a window and
// sinks. Lee et al., "HiP Attention", arXiv 2406.09827 (Algorithm 1; representative: a half's first
// block).
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "io/error.h"
#include "mixer/common/attend_core.h"
#include "mixer/common/core_layer.h"
#include "mixer/common/dense_attention.h"

namespace heed::mixer {
namespace {

struct Search {
  int64_t topk, block_q, block_k, window, sinks;
  int64_t most() const { return topk / block_k; }  // chosen blocks of one query block
  int64_t end(int64_t i, int64_t t) const { return std::min((i + 1) * block_q, t); }
  int64_t searched(int64_t i, int64_t t) const { return std::max<int64_t>(end(i, t) - window, 0); }
};

Search read_search(const Settings& settings) {
  const auto number = [&](const char* name) { return settings.integer(name); };
  const Search s{number("topk"), number("block_q"), number("block_k"), number("window"),
                 number("sinks")};
  if (s.topk % s.block_k != 0) {
    throw UsageError("topk={} is no multiple of block_k={}", s.topk, s.block_k);
  }
  return s;
}

// Chosen blocks of every query block, ascending, -1 in front: [B,H,blocks,most] int64 on the CPU.
at::Tensor no_choice(const at::Tensor& q, const Search& s) {
  const int64_t blocks = (q.size(1) + s.block_q - 1) / s.block_q;
  return at::full({q.size(0), q.size(2), blocks, s.most()}, -1, at::kLong);
}

// All blocks of [0, n) where they fit, else false.
bool choose_all(const at::Tensor& chosen, int64_t i, int64_t n, const Search& s) {
  if (n > s.topk) return false;
  const int64_t count = (n + s.block_k - 1) / s.block_k;
  chosen.select(2, i).slice(2, s.most() - count).copy_(at::arange(count, at::kLong));
  return true;
}

// The search word by word: one query block and head at a time, halves as (start, size).
at::Tensor search_naive(const at::Tensor& q, const at::Tensor& k, const Search& s) {
  const int64_t t = q.size(1), group = q.size(2) / k.size(2);
  at::Tensor chosen = no_choice(q, s);
  const at::Tensor qd = q.to(dense_type(q)), kd = k.to(dense_type(k));
  const auto search = [&](int64_t b, int64_t h, int64_t i) {
    const int64_t n = s.searched(i, t), blocks = (n + s.block_k - 1) / s.block_k;
    const at::Tensor queries = qd.select(0, b).select(1, h).slice(0, i * s.block_q, s.end(i, t));
    const at::Tensor keys = kd.select(0, b).select(1, h / group);
    std::vector<std::pair<int64_t, int64_t>> groups;
    for (int64_t g = 0; g < s.most(); ++g) {
      const int64_t first = blocks * g / s.most();
      groups.emplace_back(first, blocks * (g + 1) / s.most() - first);
    }
    const auto splits = [&] {
      return std::any_of(groups.begin(), groups.end(), [](auto& x) { return x.second > 1; });
    };
    while (splits()) {
      std::vector<std::tuple<double, int64_t, int64_t>> halves;
      for (const auto& [start, size] : groups) {
        for (const auto& [first, count] :
             {std::pair{start, size / 2}, std::pair{start + size / 2, size - size / 2}}) {
          if (count == 0) continue;
          const int64_t end = std::min((first + 1) * s.block_k, n);
          const at::Tensor scores = at::matmul(queries, keys.slice(0, first * s.block_k, end).t());
          halves.emplace_back(-scores.max().item<double>(), first, count);
        }
      }
      std::stable_sort(halves.begin(), halves.end());
      groups.clear();
      for (const auto& [score, first, count] : halves) {
        if (static_cast<int64_t>(groups.size()) < s.most()) groups.emplace_back(first, count);
      }
      std::sort(groups.begin(), groups.end());
    }
    const at::Tensor row = chosen[b][h][i];
    for (size_t g = 0; g < groups.size(); ++g) {
      row[s.most() - static_cast<int64_t>(groups.size() - g)].fill_(groups[g].first);
    }
  };
  for (int64_t i = 0; i < chosen.size(2); ++i) {
    if (choose_all(chosen, i, s.searched(i, t), s)) continue;
    for (int64_t b = 0; b < q.size(0); ++b) {
      for (int64_t h = 0; h < q.size(2); ++h) search(b, h, i);
    }
  }
  return chosen;
}

// The same search for all heads of a query block at once. A group that is gone has size 0.
at::Tensor search_blocks(const at::Tensor& queries, const at::Tensor& keys, int64_t n,
                         const Search& s) {
  const int64_t batch = queries.size(0), heads = queries.size(1), group = heads / keys.size(1);
  const int64_t blocks = (n + s.block_k - 1) / s.block_k, most = s.most();
  const at::Tensor edge = at::floor_divide(at::arange(most + 1, at::kLong).mul(blocks), most);
  at::Tensor start = edge.slice(0, 0, most).expand({batch, heads, most});
  at::Tensor size = edge.slice(0, 1).sub(edge.slice(0, 0, most)).expand({batch, heads, most});
  const at::Tensor offset = at::arange(s.block_k, at::kLong);
  while (size.gt(1).any().item<bool>()) {
    const at::Tensor left = at::floor_divide(size, 2);
    start = at::cat({start, start.add(left)}, 2);
    size = at::cat({left, size.sub(left)}, 2);
    // Keys of the first block of each half; behind n its last key again.
    const at::Tensor at_key = start.unsqueeze(3).mul(s.block_k).add(offset).clamp_max(n - 1);
    const at::Tensor flat =
        at_key.view({batch, keys.size(1), -1, 1})
            .expand({batch, keys.size(1), group * 2 * most * s.block_k, keys.size(3)});
    const at::Tensor first =
        keys.gather(2, flat).view({batch, heads, 2 * most * s.block_k, keys.size(3)});
    at::Tensor score = at::matmul(queries, first.transpose(2, 3)).amax(2);
    score = score.view({batch, heads, 2 * most, s.block_k}).amax(3);
    score = score.masked_fill(size.eq(0), -std::numeric_limits<double>::infinity());
    // Of equal scores the earlier block: sort by place, then stably by score.
    const at::Tensor order = std::get<1>(start.sort(2));
    const at::Tensor by_place = score.gather(2, order);
    const at::Tensor best =
        std::get<1>(at::sort(by_place, std::optional<bool>(true), 2, true)).slice(2, 0, most);
    const at::Tensor kept = order.gather(2, best);
    start = start.gather(2, kept), size = size.gather(2, kept);
  }
  return std::get<0>(start.masked_fill(size.eq(0), -1).sort(2));
}

// Of queries that are the last tokens of k, in blocks from the first of them on.
at::Tensor search_fast(const at::Tensor& q, const at::Tensor& k, const Search& s) {
  const int64_t past = k.size(1) - q.size(1);
  at::Tensor chosen = no_choice(q, s);
  const at::Tensor qh = q.to(at::kFloat).transpose(1, 2), kh = k.to(at::kFloat).transpose(1, 2);
  for (int64_t i = 0; i < chosen.size(2); ++i) {
    const int64_t end = s.end(i, q.size(1)), n = std::max<int64_t>(past + end - s.window, 0);
    if (choose_all(chosen, i, n, s)) continue;
    chosen.select(2, i).copy_(
        search_blocks(qh.slice(2, i * s.block_q, end), kh.slice(2, 0, n), n, s));
  }
  return chosen;
}

// Compressed rows of the chosen blocks for op::attend.
void set_lists(const at::Tensor& chosen, op::AttendOptions& options) {
  const int64_t rows = chosen.numel() / std::max<int64_t>(chosen.size(3), 1);
  const at::Tensor start = at::zeros({rows + 1}, at::kLong);
  start.slice(0, 1).copy_(chosen.ge(0).sum(3).flatten().cumsum(0));
  // Row r of a head ends where row r + 1 begins: the rows of all heads lie one after another.
  const int64_t blocks = chosen.size(2);
  options.block_start = start.unfold(0, blocks + 1, blocks)
                            .contiguous()
                            .view({chosen.size(0), chosen.size(1), blocks + 1});
  options.block_index = chosen.masked_select(chosen.ge(0)).to(at::kInt);
}

NamedTensors hip_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const Search s = read_search(call.settings);
  const int64_t t = q.size(1);
  op::AttendOptions options;
  options.causal = true;
  options.scale = call.settings.number("scale", 1 / std::sqrt(static_cast<double>(q.size(3))));
  at::Tensor chosen;
  {
    const at::NoGradGuard no_grad;
    chosen = call.form == "naive" ? search_naive(q.detach(), k.detach(), s)
                                  : search_fast(q.detach(), k.detach(), s);
  }
  if (t == 0) {
    return {{"out", v.new_zeros({q.size(0), 0, q.size(2), v.size(3)})},
            {"lse", at::zeros({q.size(0), 0, q.size(2)}, q.options().dtype(dense_type(q)))},
            {"indices", chosen}};
  }
  if (call.form != "naive") {
    options.window = s.window, options.sinks = s.sinks, options.any = true;
    options.q_block = s.block_q, options.k_block = s.block_k;
    set_lists(chosen, options);
    const auto [out, lse] = op::attend(q, k, v, options);
    return {{"out", out}, {"lse", lse}, {"indices", chosen}};
  }
  // Query p sees j <= p that a chosen block of its query block holds, or j > p - window, or a sink.
  const at::Tensor p = at::arange(t, at::kLong).unsqueeze(1), j = at::arange(t, at::kLong);
  const at::Tensor near = j.gt(p.sub(s.window)).logical_or(j.lt(s.sinks));
  const at::Tensor block = at::floor_divide(j, s.block_k);
  const at::Tensor of_block = chosen.unsqueeze(4).eq(block).any(3);  // [B,H,blocks,T]
  const at::Tensor listed = of_block.repeat_interleave(s.block_q, 2).slice(2, 0, t);
  const at::Tensor visible = listed.logical_or(near).logical_and(j.le(p));
  const auto [w, lse] = dense_softmax(dense_logits(q, k, *options.scale), visible);
  return {{"out", dense_values(w, v)}, {"lse", lse.transpose(1, 2)}, {"indices", chosen}};
}

// What the last search chose [H,most], and how many tokens there were then (0: none yet).
struct Choice {
  at::Tensor blocks, tokens;
  int64_t refresh = 1;  // steps that read it before the next search

  int64_t age(int64_t tokens_now) const { return tokens_now - tokens.item<int64_t>(); }
  bool serves(int64_t tokens_now) const {
    return refresh > 1 && tokens.item<int64_t>() > 0 && age(tokens_now) < refresh;
  }
  void keep(const at::Tensor& chosen, int64_t tokens_now) {
    if (refresh == 1) return;
    blocks.copy_(chosen[0].select(1, -1));
    tokens.fill_(tokens_now);
  }
};

// q [1,T,H,D], the last T of the tokens k [1,N,Hk,D], in blocks of queries that are counted from
// the first of all tokens. A block that has only begun is searched with the queries that are there;
// a single query reads the choice of an earlier one while it serves, behind a window that has grown
// by the tokens since, so that none is lost between the two.
at::Tensor decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Search& s,
                  double scale, Choice choice) {
  const int64_t past = k.size(1) - q.size(1);
  std::vector<at::Tensor> outs;
  for (int64_t begin = past; begin < k.size(1);) {
    // The rest of a block, or whole ones: lists are for blocks from the first query on.
    const int64_t whole = begin % s.block_q == 0 ? k.size(1) : (begin / s.block_q + 1) * s.block_q;
    const int64_t end = std::min(whole, k.size(1));
    const at::Tensor queries = q.slice(1, begin - past, end - past);
    const at::Tensor keys = k.slice(1, 0, end);
    op::AttendOptions options;
    options.causal = options.any = true;
    options.scale = scale;
    options.window = s.window, options.sinks = s.sinks;
    options.q_block = s.block_q, options.k_block = s.block_k;
    if (end - begin == 1 && choice.serves(end)) {
      options.window += choice.age(end);
      set_lists(choice.blocks.view({1, q.size(2), 1, s.most()}), options);
    } else {
      const at::Tensor chosen = search_fast(queries, keys, s);
      choice.keep(chosen, end);
      set_lists(chosen, options);
    }
    outs.push_back(std::get<0>(op::attend(queries, keys, v.slice(1, 0, end), options)));
    begin = end;
  }
  return at::cat(outs, 1);
}

// No parameters but the projections: any trained attention layer's weights fit. With `refresh` = r
// decoding searches at every r-th token.
class HipLayer final : public CoreLayer {
 public:
  explicit HipLayer(const LayerConfig& config)
      : CoreLayer("hip", config, kWindow | kKeySet,
                  {"topk", "block_q", "block_k", "window", "sinks"}),
        search_(read_search(settings())),
        refresh_(options_.integer("refresh", 1)) {
    options_.close();
  }
  bool takes(Pattern pattern) const override { return pattern == Pattern::kCausalSelf; }
  StateSpec state(const StateRequest& request) const override {
    StateSpec spec = AttentionLayer::state(request);
    std::get<RowsPart>(spec.parts[0]).grouped = true;
    if (refresh_ > 1) {
      spec.parts.emplace_back(FixedPart{"chosen", {view().heads, search_.most()}, at::kLong});
      spec.parts.emplace_back(FixedPart{"searched", {1}, at::kLong});
    }
    return spec;
  }
  Traits traits() const override {
    Traits traits = AttentionLayer::traits();
    traits.causality = Causality::kSelectionLeaky;
    if (refresh_ > 1) traits.can_truncate = false;
    return traits;
  }

 protected:
  at::Tensor mix(Heads& h, op::AttendOptions options) override {
    if (h.call.states.empty()) return CoreLayer::mix(h, options);
    return over_states(
        h, [&](const Sequences& part, State& state, const at::Tensor& k, const at::Tensor& v) {
          Choice choice;
          if (refresh_ > 1) choice = {state.tensor(1), state.tensor(2), refresh_};
          return decode(part(h.q), k, v, search_, *options.scale, choice);
        });
  }

 private:
  Search search_;
  int64_t refresh_;
};

}  // namespace

void register_hip(Registry& registry) {
  Mechanism m;
  m.card.id = "hip";
  m.card.equations =
      "query block i ends before E and searches the n = max(E - window, 0) first keys in blocks:\n"
      "all are chosen if n <= topk, else from kb = topk/block_k groups on every group is split\n"
      "in halves, scored by max q.k over the half's first block, the kb best kept, until all are "
      "one\n"
      "block; query p sees j <= p in a chosen block, or j > p - window, or j < sinks; softmax\n"
      "indices: the chosen blocks, ascending, behind as many -1 as are missing";
  m.card.state_size = "Hk (D+V) T";
  m.card.apply.inputs = {token("q", "B,T,H,D"), token("k", "B,T,Hk,D"), token("v", "B,T,Hk,V")};
  m.card.apply.settings = {
      int_setting("topk", "512").at_least(1),  int_setting("block_q", "32").at_least(1),
      int_setting("block_k", "2").at_least(1), int_setting("window", "128").at_least(1),
      int_setting("sinks", "16").at_least(0),  scale_setting("1/sqrt(D)")};
  m.card.apply.outputs = {output("out", "B,T,H,V"), output("lse", "B,T,H").constant(),
                          index_output("indices", "B,H,ceil(T/block_q),topk/block_k")};
  m.card.apply.forms = {"parallel", "naive"};
  m.traits.causality = Causality::kSelectionLeaky;
  TestCard& tests = m.card.tests;
  tests.heads = {"H", "Hk"};
  tests.sizes = {{"H", 4}, {"Hk", 2}, {"D", 9}, {"V", 6}};
  tests.large = {{"D", 64}, {"V", 64}};
  tests.timed = {{"topk", "512"}};
  tests.always = {{"topk", "16"}, {"block_q", "8"}, {"window", "12"}, {"sinks", "3"}};
  tests.tries = {{{{"topk", "12"}, {"block_q", "16"}, {"block_k", "3"}, {"window", "5"}}, {}, {}}};
  // Blocks of one query: what a token reads then hangs on no later one, however the text is cut.
  tests.layer.options = R"({"topk": 8, "block_q": 1, "window": 4, "sinks": 2})";
  tests.layer.smooth = R"({"topk": 64, "block_q": 1, "window": 4, "sinks": 2})";
  m.core = hip_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<HipLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
