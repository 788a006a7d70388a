#include "mixer/common/neighborhood.h"

#include <ATen/ATen.h>

#include "io/error.h"
#include "mixer/common/attend_core.h"
#include "mixer/common/core_layer.h"
#include "mixer/common/dense_attention.h"
#include "op/layout.h"

namespace heed::mixer {
namespace {

struct Rule {
  std::vector<int64_t> grid, window, dilation, stride, causal;
  double scale = 1;
};

Rule read_rule(const CoreCall& call) {
  Rule rule;
  const int64_t t = call.get("q").size(1);
  rule.grid = call.settings.has("grid") ? call.settings.ints("grid") : std::vector<int64_t>{t};
  const size_t rank = rule.grid.size();
  if (rank > static_cast<size_t>(kernel::kMaxAxes)) {
    throw UsageError("grid has {} axes, expected 1 to {}", rank, kernel::kMaxAxes);
  }
  int64_t cells = 1;
  for (int64_t length : rule.grid) cells *= length;
  if (cells != t) throw UsageError("grid has {} cells, q has T = {} tokens", cells, t);
  rule.window = call.settings.axes("window", rank);
  rule.dilation = call.settings.axes("dilation", rank);
  rule.stride = call.settings.has("stride") ? call.settings.axes("stride", rank)
                                            : std::vector<int64_t>(rank, 1);
  rule.causal = call.settings.axes("causal", rank);
  rule.scale =
      call.settings.number("scale", 1 / std::sqrt(static_cast<double>(call.get("q").size(3))));
  for (size_t i = 0; i < rank; ++i) {
    const int64_t w = rule.window[i], d = rule.dilation[i], s = rule.stride[i];
    if (w < 2 || d < 1 || s < 1 || s > w || w * d > rule.grid[i]) {
      throw UsageError(
          "axis {} has length {}, window {}, dilation {}, stride {}; expected window >= 2, 1 <= "
          "stride <= window and window dilation <= length",
          i, rule.grid[i], w, d, s);
    }
  }
  return rule;
}

// The keys [start, end) of place u of one axis without dilation, word by word as in NATTEN's
// reference.
std::pair<int64_t, int64_t> places(int64_t u, const kernel::Axis& axis) {
  const int64_t n = axis.length, w = axis.window, s = axis.stride;
  if (axis.causal) {
    const int64_t e = std::min((u / s) * s + s - 1, n - 1);
    return {std::max<int64_t>(e - w + 1, 0), u + 1};
  }
  const int64_t e = std::min((u / s) * s + s / 2, n - 1);
  const int64_t start = std::min(std::max<int64_t>(e - w / 2, 0), n - w);
  return {start, start + w};
}

// bool [L,L]: what place i of one axis sees.
at::Tensor visible_places(int64_t length, int64_t w, int64_t d, int64_t s, bool causal) {
  const at::Tensor visible = at::zeros({length, length}, at::kBool);
  auto pairs = visible.accessor<bool, 2>();
  for (int64_t i = 0; i < length; ++i) {
    const int64_t g = i % d;
    const auto [start, end] = places(i / d, {(length - g + d - 1) / d, w, s, causal});
    for (int64_t place = start; place < end; ++place) pairs[i][place * d + g] = true;
  }
  return visible;
}

NamedTensors naive(const CoreCall& call, const Rule& rule) {
  const at::Tensor q = call.get("q");
  at::Tensor k = call.get("k"), v = call.get("v");
  at::Tensor visible = at::ones({1, 1}, at::kBool);
  for (size_t i = 0; i < rule.grid.size(); ++i) {
    const at::Tensor axis = visible_places(rule.grid[i], rule.window[i], rule.dilation[i],
                                           rule.stride[i], rule.causal[i] != 0);
    visible = visible.unsqueeze(1).unsqueeze(3).logical_and(axis.unsqueeze(0).unsqueeze(2));
    visible = visible.flatten(2, 3).flatten(0, 1);
  }
  if (const at::Tensor extra = call.get("extra_k"); extra.defined()) {
    k = at::cat({k, extra}, 1), v = at::cat({v, call.get("extra_v")}, 1);
    visible = at::cat({visible, visible.new_ones({q.size(1), extra.size(1)})}, 1);
  }
  const auto [w, lse] = dense_softmax(dense_logits(q, k, rule.scale), visible.to(q.device()));
  return {{"out", dense_values(w, v)}, {"lse", lse.transpose(1, 2)}};
}

// Groups of the dilation as rows of a batch: [B,T,H,D] -> [B groups, cells, H, D].
at::Tensor group_rows(const at::Tensor& t, const at::Tensor& tokens) {
  const int64_t groups = tokens.size(0), cells = tokens.size(1);
  return t.index_select(1, tokens.flatten())
      .view({t.size(0) * groups, cells, t.size(2), t.size(3)});
}

std::tuple<at::Tensor, at::Tensor> parallel(const at::Tensor& q, const at::Tensor& k,
                                            const at::Tensor& v, const Rule& rule) {
  const int64_t batch = q.size(0), heads = q.size(2);
  std::vector<at::Tensor> outs, lses, order;
  for (const op::GridParts& part : op::dilation_groups(rule.grid, rule.dilation)) {
    op::AttendOptions options;
    options.scale = rule.scale;
    for (size_t i = 0; i < rule.grid.size(); ++i) {
      options.axes.push_back(
          {part.lengths[i], rule.window[i], rule.stride[i], rule.causal[i] != 0});
    }
    if (part.tokens.numel() == q.size(1) && part.tokens.size(0) == 1) {
      return op::attend(q, k, v, options);
    }
    const at::Tensor tokens = part.tokens.to(q.device());
    const auto [out, lse] =
        op::attend(group_rows(q, tokens), group_rows(k, tokens), group_rows(v, tokens), options);
    outs.push_back(out.reshape({batch, tokens.numel(), heads, v.size(3)}));
    lses.push_back(lse.reshape({batch, tokens.numel(), heads}));
    order.push_back(tokens.flatten());
  }
  const at::Tensor back = op::inverse_order(at::cat(order));
  return {at::cat(outs, 1).index_select(1, back), at::cat(lses, 1).index_select(1, back)};
}

// Decoding along the first axis, which is causal: a slice of the grid (one token, if it has no
// other axis) reads those newest slices of the cache that the axis lets it see.
class Slices {
 public:
  Slices(const CoreCall& call, const Rule& rule) : call_(call), rule_(rule), rest_(rule) {
    for (auto* list : {&rest_.grid, &rest_.window, &rest_.dilation, &rest_.stride, &rest_.causal}) {
      list->erase(list->begin());
    }
    for (const int64_t length : rest_.grid) cells_ *= length;
  }

  std::tuple<at::Tensor, at::Tensor> read(int64_t place) const {
    const int64_t length = rule_.grid[0], d = rule_.dilation[0], group = place % d;
    const kernel::Axis axis = {(length - group + d - 1) / d, rule_.window[0], rule_.stride[0],
                               true};
    const auto [start, end] = places(place / d, axis);
    const int64_t first = start * d + group;
    if (rest_.grid.empty()) {
      op::AttendOptions options;
      options.scale = rule_.scale;
      const auto cache = [&](const char* name) {
        return call_.get(name).slice(1, first, place + 1, d);
      };
      return op::attend(slice("q", place), cache("k"), cache("v"), options);
    }
    std::vector<at::Tensor> outs, lses;
    for (int64_t j = first; j <= place; j += d) {
      const auto [out, lse] = parallel(slice("q", place), slice("k", j), slice("v", j), rest_);
      outs.push_back(out), lses.push_back(lse);
    }
    return op::merge(outs, lses);
  }

 private:
  at::Tensor slice(const char* name, int64_t place) const {
    return call_.get(name).slice(1, place * cells_, (place + 1) * cells_);
  }

  const CoreCall& call_;
  const Rule& rule_;
  Rule rest_;  // the rule of the other axes
  int64_t cells_ = 1;
};

std::tuple<at::Tensor, at::Tensor> recurrent(const CoreCall& call, const Rule& rule) {
  if (rule.causal[0] == 0) {
    throw UsageError("recurrent decodes along the first axis, which must be causal: set causal");
  }
  const Slices slices(call, rule);
  std::vector<at::Tensor> outs, lses;
  for (int64_t place = 0; place < rule.grid[0]; ++place) {
    const auto [out, lse] = slices.read(place);
    outs.push_back(out), lses.push_back(lse);
  }
  return {at::cat(outs, 1), at::cat(lses, 1)};
}

std::vector<std::string> options_of_layer(bool strided) {
  std::vector<std::string> names = {"window", "dilation", "causal", "scale"};
  if (strided) names.push_back("stride");
  return names;
}

class NeighborhoodLayer final : public CoreLayer {
 public:
  NeighborhoodLayer(const std::string& id, bool strided, const LayerConfig& config)
      : CoreLayer(id, config, kRotation | kKeySet | kWindow, options_of_layer(strided)) {
    options_.close();
    const auto one = [&](const char* name) {
      return settings().ints(name) == std::vector<int64_t>{1};
    };
    const std::vector<int64_t>& window = settings().ints("window");
    for (const int64_t w : window) {
      if (w < 2) throw UsageError("mixer {}: option window is {}, expected at least 2", id, w);
    }
    slides_ = window.size() == 1 && one("dilation") && (!strided || one("stride"));
    if (slides_) set_window(window[0]);
  }
  bool takes(Pattern pattern) const override {
    return pattern == Pattern::kNoncausalSelf || (slides_ && pattern == Pattern::kCausalSelf);
  }

 protected:
  op::AttendOptions options(const at::Tensor& x, const Heads& h) const override {
    op::AttendOptions options = CoreLayer::options(x, h);
    options.scale = settings().number("scale", *options.scale);
    return options;
  }
  at::Tensor mix(Heads& h, op::AttendOptions options) override {
    if (h.call.pattern == Pattern::kNoncausalSelf) return CoreLayer::mix(h, options);
    if (h.call.grid.rank > 1) {
      throw UsageError("mixer {}: causal self attention is over one axis, the grid has {}", id(),
                       h.call.grid.rank);
    }
    return AttentionLayer::mix(h, options);
  }

 private:
  bool slides_ = false;
};

}  // namespace

TileSpeedup tile_speedup(const std::vector<kernel::Axis>& axes, const std::vector<int64_t>& q_tile,
                         const std::vector<int64_t>& k_tile) {
  TileSpeedup speedup{1, 1};
  for (size_t a = 0; a < axes.size(); ++a) {
    const int64_t length = axes[a].length, tq = q_tile[a], tk = k_tile[a];
    const auto tiles = static_cast<double>((length + tk - 1) / tk);
    int64_t most = 0, sum = 0, count = 0;
    for (int64_t q0 = 0; q0 < length; q0 += tq, ++count) {
      const int64_t start = places(q0, axes[a]).first;
      const int64_t end = places(std::min(q0 + tq, length) - 1, axes[a]).second;
      const int64_t visited = (end + tk - 1) / tk - start / tk;
      most = std::max(most, visited);
      sum += visited;
    }
    speedup.worst *= tiles / static_cast<double>(most);
    speedup.mean *= tiles * static_cast<double>(count) / static_cast<double>(sum);
  }
  return speedup;
}

std::unique_ptr<Layer> make_neighborhood_layer(const std::string& id, bool strided,
                                               const LayerConfig& config) {
  return std::make_unique<NeighborhoodLayer>(id, strided, config);
}

NamedTensors neighborhood(const CoreCall& call) {
  const Rule rule = read_rule(call);
  if (call.form == "naive") return naive(call, rule);
  auto [out, lse] = call.form == "parallel"
                        ? parallel(call.get("q"), call.get("k"), call.get("v"), rule)
                        : recurrent(call, rule);
  if (const at::Tensor extra = call.get("extra_k"); extra.defined()) {
    op::AttendOptions options;
    options.scale = rule.scale;
    const auto [o, l] = op::attend(call.get("q"), extra, call.get("extra_v"), options);
    std::tie(out, lse) = op::merge({out, o}, {lse, l});
  }
  return {{"out", out}, {"lse", lse}};
}

Causality neighborhood_causality(const Settings& settings) {
  for (int64_t causal : settings.ints("causal")) {
    if (causal == 0) return Causality::kNone;
  }
  return Causality::kStrict;
}

void set_neighborhood_row(Card& card, bool strided) {
  card.patterns = "causal self, noncausal self";
  card.state_size = "Hk (D+V) window";
  ApplyRow& row = card.apply;
  row.inputs = {token("q", "B,T,H,D"), token("k", "B,T,Hk,D"), token("v", "B,T,Hk,V"),
                token("extra_k", "B,E,Hk,D").together("extra"),
                token("extra_v", "B,E,Hk,V").together("extra")};
  row.settings = {ints_setting("grid", "T").at_least(1),
                  ints_setting("window").at_least(2).needed(),
                  ints_setting("dilation", "1").trying({"3"}),
                  ints_setting("causal", "false", {"false", "true"}).trying({"true"}),
                  scale_setting("1/sqrt(D)")};
  if (strided) row.settings.push_back(ints_setting("stride", "1").trying({"4"}));
  row.outputs = {output("out", "B,T,H,V"), output("lse", "B,T,H").constant()};
  row.forms = {"parallel", "naive", {"recurrent", "causal[0]=1"}};
  TestCard& tests = card.tests;
  tests.heads = {"H", "Hk"};
  tests.sizes = {{"H", 4}, {"Hk", 2}, {"D", 9}, {"V", 6}, {"E", 2}, {"T", 36}};
  tests.large = {{"D", 64}, {"V", 64}};
  tests.timed = {{"window", "13"}};
  tests.always = {{"window", "5"}};
  const auto grid = [&](const char* axes, int64_t t, SettingList more) {
    more.push_back({"grid", axes});
    tests.tries.push_back({std::move(more), {{"T", t}}, {"extra_k", "extra_v"}});
  };
  grid("7x9", 63, {{"window", "3x4"}, {"causal", "1x0"}});
  grid("8x10", 80, {{"window", "4x3"}, {"dilation", "2x3"}});
  grid("4x5x6", 120, {{"window", "2x3x4"}, {"causal", "0x1x0"}});
  grid("50", 50, {{"window", "6"}, {"dilation", "3"}, {"causal", "true"}});
  grid("7x4x5", 140, {{"window", "3x2x3"}, {"dilation", "2x2x1"}, {"causal", "1x0x1"}});
  tests.layer = {
      strided ? R"({"window": 5, "dilation": 1, "stride": 1})" : R"({"window": 5})", "", {}};
  if (strided) {
    grid("12x8", 96, {{"window", "6x4"}, {"stride", "6x2"}});
    grid("5x13", 65, {{"window", "3x6"}, {"stride", "2x5"}, {"causal", "0x1"}});
    grid("9x6", 54, {{"window", "4x3"}, {"dilation", "2x1"}, {"stride", "3x2"}, {"causal", "1x0"}});
  }
}

}  // namespace heed::mixer
