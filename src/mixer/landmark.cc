// Landmark attention: every `block` tokens are followed by a landmark. A query weighs the tokens of
// its own block and the landmarks of earlier blocks by one softmax, and shares a landmark's weight
// out among the tokens of its block by another. Mohtashami and Jaggi, "Landmark Attention:
// Random-Access Infinite Context Length for Transformers", arXiv 2305.16300 (section 3).
#include <ATen/ATen.h>

#include <limits>

#include "io/error.h"
#include "mixer/common/attend_core.h"
#include "mixer/common/core_layer.h"
#include "mixer/common/dense_attention.h"

namespace heed::mixer {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Tokens from the start of a block on, of which `keys` are there as keys; query i stands at token
// i + past.
struct Blocks {
  int64_t size, queries, keys, past;  // size: of a block, its landmark not counted

  // The queries are the last tokens of the keys.
  static Blocks last(int64_t size, int64_t queries, int64_t keys) {
    return {size, queries, keys, keys - queries};
  }
  int64_t of(int64_t token) const { return token / (size + 1); }
  // Blocks that are earlier than the last query's own.
  int64_t earlier() const { return queries == 0 ? 0 : std::min(of(past + queries - 1), of(keys)); }

  at::Tensor tokens() const { return at::arange(keys, at::kLong); }
  at::Tensor block_of(const at::Tensor& t) const { return at::floor_divide(t, size + 1); }
  at::Tensor landmark(const at::Tensor& t) const { return t.add(1).remainder(size + 1).eq(0); }
  at::Tensor query_tokens() const { return at::arange(past, past + queries, at::kLong); }
  // bool [queries,earlier()]
  at::Tensor earlier_blocks() const {
    return at::arange(earlier(), at::kLong).lt(block_of(query_tokens()).unsqueeze(1));
  }
};

// k of the earlier blocks [B,earlier(),size+1,Hk,D]: their landmark is the last of each.
at::Tensor by_block(const at::Tensor& t, const Blocks& s) {
  return t.slice(1, 0, s.earlier() * (s.size + 1)).unflatten(1, {s.earlier(), s.size + 1});
}

at::Tensor naive(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                 const Blocks& s) {
  const at::Tensor x = dense_logits(q, k, scale);  // [B,H,Tq,Tk]
  const at::Tensor i = s.query_tokens().unsqueeze(1), j = s.tokens().unsqueeze(0);
  const at::Tensor own = s.block_of(i).eq(s.block_of(j)), landmark = s.landmark(j);
  const at::Tensor near = own.logical_and(landmark.logical_not()).logical_and(j.le(i));
  const at::Tensor far = landmark.logical_and(s.block_of(j).lt(s.block_of(i)));
  const at::Tensor p = dense_softmax(x, near.logical_or(far)).first;
  at::Tensor weights = p.masked_fill(near.logical_not(), 0.0);
  for (int64_t b = 0; b < s.earlier(); ++b) {
    const at::Tensor of_block = s.block_of(j).eq(b).logical_and(landmark.logical_not());
    const at::Tensor inside = of_block.logical_and(s.block_of(i).gt(b));
    const at::Tensor u = dense_softmax(x, inside).first;
    weights = weights.add(u.mul(p.select(3, b * (s.size + 1) + s.size).unsqueeze(3)));
  }
  return dense_values(weights, v);
}

// ln sum over the tokens of each earlier block e^x: [B,Tq,H,earlier()]. Few queries see all blocks
// at once, many one after another, from where the block is an earlier one.
at::Tensor block_sums(const at::Tensor& q, const at::Tensor& keys, double scale, const Blocks& s) {
  op::AttendOptions options;
  options.scale = scale;
  const int64_t blocks = s.earlier(), batch = q.size(0);
  const at::Tensor regular = keys.slice(2, 0, s.size);
  if (q.size(1) <= s.size) {
    const at::Tensor many = q.unsqueeze(1).expand({batch, blocks, -1, -1, -1}).flatten(0, 1);
    const at::Tensor k = regular.flatten(0, 1);
    const at::Tensor lse = std::get<1>(op::attend(many, k, k.slice(3, 0, 1), options));
    return lse.unflatten(0, {batch, blocks}).permute({0, 2, 3, 1});
  }
  std::vector<at::Tensor> sums;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = std::max<int64_t>((b + 1) * (s.size + 1) - s.past, 0);
    const at::Tensor k = regular.select(1, b);
    const at::Tensor lse = std::get<1>(op::attend(q.slice(1, first), k, k.slice(3, 0, 1), options));
    sums.push_back(at::constant_pad_nd(lse, {0, 0, first, 0}));
  }
  return at::stack(sums, 3);
}

// One softmax over all regular tokens, whose logits are x_ij in the own block and
// x_ij + z_ib - lse_ib in an earlier block b with the landmark's logit z: the difference goes in as
// one more dimension a block, in which the block's keys are 1. (out, lse); queries that have the
// keys behind them see them all.
std::tuple<at::Tensor, at::Tensor> one_softmax(const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& v, double scale, const Blocks& s) {
  const at::Tensor landmark = s.landmark(s.tokens()).to(q.device());
  op::AttendOptions options;
  options.causal = s.past < s.keys;
  options.scale = 1;
  options.key_bias = at::zeros({s.keys}, q.options().dtype(at::kFloat))
                         .masked_fill(landmark, -kInf)
                         .view({1, s.keys, 1})
                         .expand({q.size(0), s.keys, q.size(2)});
  const at::Tensor scaled = q.mul(scale);
  if (s.earlier() == 0) return op::attend(scaled, k, v, options);
  const at::Tensor split = by_block(k, s);
  const at::Tensor z =
      dense_logits(q, split.select(2, s.size), scale).transpose(1, 2);  // [B,Tq,H,blocks]
  const at::Tensor shift = z.sub(block_sums(q, split, scale, s).to(q.scalar_type()));
  const at::Tensor later = s.earlier_blocks().logical_not().unsqueeze(1).to(q.device());
  const at::Tensor in_block =
      s.block_of(s.tokens()).unsqueeze(1).eq(at::arange(s.earlier(), at::kLong));
  const at::Tensor ones = in_block.to(q.options())
                              .view({1, s.keys, 1, s.earlier()})
                              .expand({k.size(0), s.keys, k.size(2), s.earlier()});
  return op::attend(at::cat({scaled, shift.masked_fill(later, 0.0)}, 3), at::cat({k, ones}, 3), v,
                    options);
}

// A run of queries and a group of blocks at a time, so that memory is linear in the tokens: a run
// has a number for each query and block, a group one for each of its keys and blocks.
at::Tensor parallel(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                    int64_t block) {
  constexpr int64_t kRun = 1024, kGroup = 64;
  const int64_t past = k.size(1) - q.size(1), group = kGroup * (block + 1);
  const at::ScalarType wide = dense_type(q);
  std::vector<at::Tensor> outs = {v.new_zeros({q.size(0), 0, q.size(2), v.size(3)}).to(wide)};
  for (int64_t begin = 0; begin < q.size(1); begin += kRun) {
    const int64_t end = std::min(begin + kRun, q.size(1));
    const at::Tensor queries = q.slice(1, begin, end).to(wide);
    at::Tensor out, lse;
    const auto read = [&](int64_t from, int64_t to) {
      const Blocks s{block, end - begin, to - from, past + begin - from};
      const auto [part, part_lse] = one_softmax(queries, k.slice(1, from, to).to(wide),
                                                v.slice(1, from, to).to(wide), scale, s);
      if (!out.defined()) {
        out = part, lse = part_lse;
      } else {
        std::tie(out, lse) = op::merge({out, part}, {lse, part_lse});
      }
    };
    const int64_t near = (past + begin) / group * group;  // the group of the first query
    for (int64_t from = 0; from < near; from += group) read(from, from + group);
    read(near, past + end);
    outs.push_back(out);
  }
  return at::cat(outs, 1).to(v.scalar_type());
}

// Each query and head reads the `topk` earlier blocks whose landmarks have the largest logits, and
// its own block. No gradient goes to the choice.
at::Tensor chosen_blocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         double scale, int64_t block, int64_t topk) {
  constexpr int64_t kRun = 32;  // queries whose blocks are gathered at a time
  const int64_t past = k.size(1) - q.size(1), heads = q.size(2);
  const at::ScalarType wide = dense_type(q);
  const at::Tensor head = at::floor_divide(at::arange(heads, at::kLong), heads / k.size(2));
  const at::Tensor row = at::arange(q.size(0), at::kLong).view({-1, 1, 1, 1});
  std::vector<at::Tensor> outs;
  for (int64_t begin = 0; begin < q.size(1); begin += kRun) {
    const int64_t end = std::min(begin + kRun, q.size(1));
    const Blocks s = Blocks::last(block, end - begin, past + end);
    const at::Tensor queries = q.slice(1, begin, end);
    if (s.earlier() <= topk) {
      outs.push_back(parallel(queries, k.slice(1, 0, s.keys), v.slice(1, 0, s.keys), scale, block));
      continue;
    }
    const at::Tensor kb = by_block(k, s).to(wide), vb = by_block(v, s).to(wide);
    const at::Tensor z = dense_logits(queries, kb.select(2, s.size), scale)
                             .masked_fill(s.earlier_blocks().logical_not(), -kInf);
    const auto [sorted, order] = at::sort(z, std::optional<bool>(true), 3, true);
    const at::Tensor picked = order.slice(3, 0, topk);  // [B,H,Tq,topk]
    const auto gathered = [&](const at::Tensor& t) {    // [B,H,Tq,topk,size,D]
      return t.slice(2, 0, block).transpose(2, 3).index({row, picked, head.view({1, -1, 1, 1})});
    };
    const at::Tensor qh = queries.to(wide).transpose(1, 2);  // [B,H,Tq,D]
    const at::Tensor x = at::einsum("bhtd,bhtknd->bhtkn", {qh, gathered(kb)}).mul(scale);
    const at::Tensor far = at::einsum("bhtkn,bhtknd->bhtkd", {x.softmax(-1), gathered(vb)});
    // The own blocks of these queries, regular tokens up to each.
    const int64_t first = s.of(past + begin) * (block + 1);
    const at::Tensor i = s.query_tokens().unsqueeze(1);
    const at::Tensor j = s.tokens().slice(0, first).unsqueeze(0);
    const at::Tensor visible = s.block_of(i)
                                   .eq(s.block_of(j))
                                   .logical_and(j.le(i))
                                   .logical_and(s.landmark(j).logical_not());
    const auto [w, lse] =
        dense_softmax(dense_logits(queries, k.slice(1, first, s.keys), scale), visible);
    const at::Tensor near =
        dense_values(w, v.slice(1, first, s.keys).to(wide)).transpose(1, 2).unsqueeze(3);
    const at::Tensor share = at::cat({lse.unsqueeze(3), sorted.slice(3, 0, topk)}, 3).softmax(-1);
    outs.push_back(
        at::cat({near, far}, 3).mul(share.unsqueeze(4)).sum(3).transpose(1, 2).to(v.scalar_type()));
  }
  return at::cat(outs, 1);
}

NamedTensors landmark_core(const CoreCall& call) {
  const at::Tensor q = call.get("q"), k = call.get("k"), v = call.get("v");
  const double scale = call.settings.number("scale", 1 / std::sqrt(static_cast<double>(q.size(3))));
  const int64_t block = call.settings.integer("block"), t = q.size(1);
  if (call.form == "naive") return {{"out", naive(q, k, v, scale, Blocks::last(block, t, t))}};
  if (call.form == "parallel") return {{"out", parallel(q, k, v, scale, block)}};
  std::vector<at::Tensor> outs = {v.slice(1, 0, 0)};
  for (int64_t i = 0; i < t; ++i) {
    outs.push_back(
        parallel(q.slice(1, i, i + 1), k.slice(1, 0, i + 1), v.slice(1, 0, i + 1), scale, block));
  }
  return {{"out", at::cat(outs, 1)}};
}

// Softmax attention's parameters; every (block+1)-th token of a sequence is read as a landmark,
// whatever it is: a model for it is trained on text with a landmark's token in these places.
// Positions are the tokens' own. With `topk` each token and head reads so many earlier blocks.
class LandmarkLayer final : public CoreLayer {
 public:
  explicit LandmarkLayer(const LayerConfig& config)
      : CoreLayer("landmark", config, kWindow | kKeySet, {"block"}) {
    topk_ = options_.integer("topk", 0, 0);  // 0: all
    options_.close();
  }
  bool takes(Pattern pattern) const override { return pattern == Pattern::kCausalSelf; }
  StateSpec state(const StateRequest& request) const override {
    StateSpec spec = AttentionLayer::state(request);
    std::get<RowsPart>(spec.parts[0]).grouped = true;
    return spec;
  }

 protected:
  at::Tensor mix(Heads& h, op::AttendOptions options) override {
    const auto read = [&](const Sequences& part, const at::Tensor& k, const at::Tensor& v) {
      const int64_t block = settings().integer("block");
      return topk_ > 0 ? chosen_blocks(part(h.q), k, v, *options.scale, block, topk_)
                       : parallel(part(h.q), k, v, *options.scale, block);
    };
    if (h.call.states.empty()) {
      return by_sequence(h,
                         [&](const Sequences& part) { return read(part, part(h.k), part(h.v)); });
    }
    return over_states(h, [&](const Sequences& part, State&, const at::Tensor& k,
                              const at::Tensor& v) { return read(part, k, v); });
  }

 private:
  int64_t topk_;
};

}  // namespace

void register_landmark(Registry& registry) {
  Mechanism m;
  m.card.id = "landmark";
  m.card.equations =
      "token t is a landmark when (t+1) mod (block+1) = 0; b(t) = t div (block+1)\n"
      "p_i = softmax of x_ij = scale q_i.k_j over regular j <= i with b(j) = b(i), and the "
      "landmarks "
      "of\n"
      "earlier blocks;  out_i = sum_{j in own block} p_ij v_j + sum_{b < b(i)} p_ib sum_{j in b} "
      "softmax_j(x_ij) v_j";
  m.card.state_size = "H (D+V) T";
  m.card.apply.inputs = {token("q", "B,T,H,D"), token("k", "B,T,H,D"), token("v", "B,T,H,V")};
  m.card.apply.settings = {int_setting("block", "50").at_least(1), scale_setting("1/sqrt(D)")};
  m.card.apply.outputs = {output("out", "B,T,H,V")};
  m.card.apply.forms = {"parallel", "naive", "recurrent"};
  TestCard& tests = m.card.tests;
  tests.sizes = {{"D", 9}, {"V", 6}};
  tests.large = {{"D", 64}, {"V", 64}};
  tests.timed = {{"block", "50"}};
  tests.always = {{"block", "7"}};
  tests.tries = {{{{"block", "1"}}, {}, {}}, {{{"block", "200"}}, {}, {}}};
  tests.layer.options = R"({"block": 7})";
  m.core = landmark_core;
  m.layer = [](const LayerConfig& config) { return std::make_unique<LandmarkLayer>(config); };
  registry.add(std::move(m));
}

}  // namespace heed::mixer
