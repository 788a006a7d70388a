// What must hold for every layer of the registry: any split of a sequence gives the same outputs,
// packs equal separate sequences, causality, states as declared, gradients reach every parameter.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "io/error.h"
#include "mixer/sampling_helper.h"

namespace heed::mixer {
namespace layer_property_test {

using testing::relative_error;

constexpr int64_t kHidden = 48;
// Projections in float32 around the engine's bound.
constexpr double kBound = 5e-6;

LayerConfig config(const Mechanism& m, bool smooth = false) {
  LayerConfig c;
  c.hidden = kHidden;
  c.heads = 3;
  const LayerTest& test = m.card.tests.layer;
  const std::string& options = smooth && !test.smooth.empty() ? test.smooth : test.options;
  if (!options.empty()) c.options = Json::parse(options);
  return c;
}

bool causal(const Layer& layer) { return layer.takes(Pattern::kCausalSelf); }

// The layer's first pattern, over the grid that its card names.
Call call_of(const Mechanism& m, const Layer& layer, Pattern pattern) {
  Call call;
  call.pattern = pattern;
  if (pattern == Pattern::kCausalSelf) return call;
  const std::vector<int64_t>& grid = m.card.tests.layer.grid;
  call.grid.rank = static_cast<int>(grid.size());
  std::copy(grid.begin(), grid.end(), call.grid.size);
  return call;
}
Pattern pattern_of(const Layer& layer) {
  return causal(layer) ? Pattern::kCausalSelf : Pattern::kNoncausalSelf;
}

// `tokens`, or the only number that the layer takes.
int64_t tokens_of(const Mechanism& m, const Layer& layer, int64_t tokens) {
  const std::vector<int64_t>& grid = m.card.tests.layer.grid;
  if (causal(layer) || grid.empty()) return tokens;
  int64_t cells = 1;
  for (const int64_t axis : grid) cells *= axis;
  return cells;
}

template <typename F>
void for_all_layers(F&& f, bool smooth = false) {
  int layers = 0;
  for (const Mechanism& m : registry().all()) {
    if (!m.layer) continue;
    ++layers;
    SCOPED_TRACE(m.card.id);
    at::manual_seed(3);
    const std::unique_ptr<Layer> layer = make_layer(m.card.id, config(m, smooth));
    // Zero-initialised parameters would hide what they do.
    for (auto& [name, t] : layer->parameters()) t.add_(at::randn(t.sizes()).mul(0.05));
    f(m, *layer);
  }
  EXPECT_GE(layers, 7);
}

template <typename F>
void for_causal_layers(F&& f) {
  for_all_layers([&](const Mechanism& m, Layer& layer) {
    if (causal(layer)) f(m, layer);
  });
}

at::Tensor forward(Layer& layer, const at::Tensor& x, std::vector<State*> states = {}) {
  Call call;
  call.states = std::move(states);
  return layer.forward(x, call);
}

TEST(LayerProperties, AnySplitEqualsOnePass) {
  for_causal_layers([](const Mechanism&, Layer& layer) {
    const at::Tensor x = at::randn({1, 45, kHidden});
    const at::Tensor whole = forward(layer, x);
    EXPECT_EQ(whole.sizes(), x.sizes());
    for (const std::vector<int64_t>& sizes :
         {std::vector<int64_t>{45}, {20, 25}, {1, 44}, {43, 1, 1}, {7, 0, 1, 1, 30, 6}}) {
      const auto state = layer.make_state();
      std::vector<at::Tensor> parts;
      int64_t begin = 0;
      for (const int64_t size : sizes) {
        parts.push_back(forward(layer, x.slice(1, begin, begin + size), {state.get()}));
        begin += size;
        EXPECT_EQ(state->length(), begin);
      }
      EXPECT_LE(relative_error(at::cat(parts, 1), whole), kBound);
    }
  });
}

TEST(LayerProperties, BatchesOfStates) {
  for_causal_layers([](const Mechanism&, Layer& layer) {
    const at::Tensor x = at::randn({3, 12, kHidden});
    std::vector<std::unique_ptr<State>> owned;
    std::vector<State*> states;
    for (int i = 0; i < 3; ++i) {
      owned.push_back(layer.make_state());
      states.push_back(owned.back().get());
    }
    std::vector<at::Tensor> parts = {forward(layer, x.slice(1, 0, 10), states)};
    for (int64_t t = 10; t < 12; ++t) parts.push_back(forward(layer, x.slice(1, t, t + 1), states));
    const at::Tensor batched = at::cat(parts, 1);
    for (int64_t b = 0; b < 3; ++b) {
      EXPECT_LE(relative_error(batched.slice(0, b, b + 1), forward(layer, x.slice(0, b, b + 1))),
                kBound);
    }
    states.pop_back();
    EXPECT_THROW(forward(layer, x, states), UsageError);
  });
}

TEST(LayerProperties, PacksEqualSeparateSequences) {
  for_causal_layers([](const Mechanism&, Layer& layer) {
    const std::vector<int64_t> offset = {0, 9, 9, 10, 31};
    const at::Tensor x = at::randn({1, 31, kHidden});
    for (const bool with_states : {false, true}) {
      Call call;
      call.cu_seqlens = at::tensor(offset, at::kLong);
      std::vector<std::unique_ptr<State>> owned;
      for (size_t n = 0; with_states && n + 1 < offset.size(); ++n) {
        owned.push_back(layer.make_state());
        call.states.push_back(owned.back().get());
      }
      const at::Tensor packed = layer.forward(x, call);
      for (size_t n = 0; n + 1 < offset.size(); ++n) {
        const at::Tensor own = forward(layer, x.slice(1, offset[n], offset[n + 1]));
        EXPECT_LE(relative_error(packed.slice(1, offset[n], offset[n + 1]), own), kBound) << n;
        if (with_states) {
          EXPECT_EQ(owned[n]->length(), offset[n + 1] - offset[n]);
        }
      }
    }
  });
}

TEST(LayerProperties, Causality) {
  for_causal_layers([](const Mechanism&, Layer& layer) {
    const at::Tensor x = at::randn({2, 30, kHidden});
    const at::Tensor changed = at::cat({x.slice(1, 0, 14), at::randn({2, 16, kHidden})}, 1);
    EXPECT_LE(
        relative_error(forward(layer, changed).slice(1, 0, 14), forward(layer, x).slice(1, 0, 14)),
        1e-6);
  });
}

// Whether rows are dropped before the 20th token.
bool windows(const StateSpec& spec) {
  return std::any_of(spec.parts.begin(), spec.parts.end(), [](const StatePart& part) {
    const auto* rows = std::get_if<RowsPart>(&part);
    return rows && std::any_of(rows->programs.begin(), rows->programs.end(),
                               [](const HeadProgram& p) { return p.held(20) < 20; });
  });
}

TEST(LayerProperties, StatesForkSaveLoadAndTellTheirSize) {
  for_causal_layers([](const Mechanism&, Layer& layer) {
    const at::Tensor x = at::randn({1, 20, kHidden}), y = at::randn({1, 3, kHidden});
    const auto state = layer.make_state();
    EXPECT_EQ(state->bytes(), layer.state_bytes(0));
    forward(layer, x, {state.get()});
    EXPECT_EQ(state->bytes(), layer.state_bytes(20));
    const auto fork = state->fork();
    const at::Tensor first = forward(layer, y, {state.get()});
    EXPECT_EQ(fork->length(), 20);
    EXPECT_TRUE(forward(layer, y, {fork.get()}).equal(first)) << "a fork goes its own way";

    NamedTensors saved;
    fork->save(saved, "layer.");
    const auto loaded = layer.make_state();
    loaded->load(saved, "layer.");
    EXPECT_EQ(loaded->length(), 23);
    EXPECT_TRUE(forward(layer, y, {loaded.get()}).equal(forward(layer, y, {fork.get()})));
    saved.erase(saved.begin());
    EXPECT_THROW(loaded->load(saved, "layer."), Error);

    if (layer.state().can_truncate() && !windows(layer.state())) {
      const auto shorter = state->fork();
      shorter->truncate(5);
      EXPECT_LE(relative_error(forward(layer, x.slice(1, 5), {shorter.get()}),
                               forward(layer, x).slice(1, 5)),
                kBound);
    } else {
      EXPECT_THROW(state->truncate(5), Error);
    }
    state->truncate(state->length());
    state->truncate(0);
    EXPECT_LE(relative_error(forward(layer, x, {state.get()}), forward(layer, x)), kBound);
  });
}

TEST(LayerProperties, NoncausalBatchesAndPacksAreSeparateSequences) {
  for_all_layers([](const Mechanism& m, Layer& layer) {
    if (!layer.takes(Pattern::kNoncausalSelf)) return;
    Call call = call_of(m, layer, Pattern::kNoncausalSelf);
    const int64_t t = m.card.tests.layer.grid.empty() ? 23 : tokens_of(m, layer, 23);
    const at::Tensor x = at::randn({3, t, kHidden});
    const at::Tensor all = layer.forward(x, call);
    EXPECT_EQ(all.sizes(), x.sizes());
    for (int64_t b = 0; b < 3; ++b) {
      const at::Tensor own = layer.forward(x.slice(0, b, b + 1), call);
      EXPECT_LE(relative_error(all.slice(0, b, b + 1), own), kBound);
    }
    Call pack = call;
    pack.cu_seqlens = at::arange(4).mul(t);
    EXPECT_LE(relative_error(layer.forward(x.view({1, 3 * t, kHidden}), pack).view(x.sizes()), all),
              kBound);
    // The first token sees the last: else the pattern is not noncausal, or the window is narrow.
    if (m.card.tests.layer.grid.empty()) {
      at::Tensor changed = x.clone();
      changed.select(1, 2).add_(1.0);
      EXPECT_GT(relative_error(layer.forward(changed, call).select(1, 0), all.select(1, 0)), 1e-6);
    }
    const auto state = layer.make_state();
    call.states = {state.get(), state.get(), state.get()};
    EXPECT_THROW(layer.forward(x, call), UsageError);
  });
}

// Whether some gradient of the core is a convention, not a derivative.
bool straight_through(const Mechanism& m) {
  const std::vector<TensorSpec>& inputs = m.card.apply.inputs;
  return std::any_of(inputs.begin(), inputs.end(), [](const TensorSpec& t) { return t.given; });
}

TEST(LayerProperties, GradientsReachEveryParameterAndMatchFiniteDifferences) {
  const auto check = [](const Mechanism& m, Layer& layer) {
    const int64_t t = tokens_of(m, layer, 24);
    const at::Tensor x = at::randn({2, t, kHidden}), weight = at::randn({2, t, kHidden});
    const auto loss = [&] {
      Aux aux;  // what only a layer's own loss reaches
      Call call = call_of(m, layer, pattern_of(layer));
      call.aux = &aux;
      at::Tensor sum = layer.forward(x, call).mul(weight).sum(at::kDouble);
      for (const auto& [name, own] : aux.losses()) sum = sum.add(own);
      return sum;
    };
    std::vector<at::Tensor> leaves;
    std::vector<std::string> names;
    for (auto& [name, p] : layer.parameters()) {
      p.requires_grad_();
      leaves.push_back(p);
      names.push_back(name);
    }
    const at::AutoGradMode mode(true);
    const auto grads = torch::autograd::grad({loss()}, leaves, {}, std::nullopt, false, true);
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < leaves.size(); ++i) {
      ASSERT_TRUE(grads[i].defined()) << names[i];
      EXPECT_GT(grads[i].abs().sum().item<double>(), 0) << names[i];
      if (straight_through(m)) continue;
      // In float32 the difference of two losses is coarse; the direction of the gradient shows it
      // best.
      const at::Tensor direction = grads[i].div(grads[i].norm());
      const double step = 1e-2 * (leaves[i].norm().item<double>() + 0.1) /
                          std::sqrt(static_cast<double>(leaves[i].numel()));
      leaves[i].add_(direction, step);
      const double plus = loss().item<double>();
      leaves[i].sub_(direction, 2 * step);
      const double minus = loss().item<double>();
      leaves[i].add_(direction, step);
      const double exact = grads[i].norm().item<double>();
      EXPECT_NEAR((plus - minus) / (2 * step), exact, 0.03 * exact + 1e-3) << names[i];
    }
  };
  for_all_layers(check, true);
}

TEST(LayerProperties, Bfloat16) {
  for_all_layers(
      [](const Mechanism& m, Layer& layer) {
        const at::Tensor x = at::randn({2, tokens_of(m, layer, 40), kHidden}).to(at::kBFloat16);
        const auto run = [&](const at::Tensor& in) {
          Call call = call_of(m, layer, pattern_of(layer));
          return layer.forward(in, call);
        };
        for (auto& [name, t] : layer.parameters()) t = t.to(at::kBFloat16).to(at::kFloat);
        const at::Tensor reference = run(x.to(at::kFloat));
        for (auto& [name, t] : layer.parameters()) t = t.to(at::kBFloat16);
        const at::Tensor y = run(x);
        EXPECT_EQ(y.scalar_type(), at::kBFloat16);
        // Every projection, norm and gate rounds to bfloat16.
        EXPECT_LE(relative_error(y, reference), 3e-2);
        if (!causal(layer)) return;
        const auto state = layer.make_state();
        const at::Tensor first = forward(layer, x.slice(0, 0, 1).slice(1, 0, 30), {state.get()});
        const at::Tensor rest = forward(layer, x.slice(0, 0, 1).slice(1, 30), {state.get()});
        EXPECT_LE(relative_error(at::cat({first, rest}, 1), reference.slice(0, 0, 1)), 3e-2);
      },
      true);  // a choice may fall otherwise once its scores are rounded
}

TEST(LayerProperties, ShapesOnlyTakesNoMemory) {
  for_all_layers([](const Mechanism& m, Layer& layer) {
    const ShapesOnly shapes_only;
    const auto bare = make_layer(m.card.id, config(m));
    ASSERT_EQ(bare->parameters().size(), layer.parameters().size());
    for (const auto& [name, t] : bare->parameters()) {
      EXPECT_TRUE(t.is_meta()) << name;
      EXPECT_EQ(t.sizes(), layer.parameters().at(name).sizes()) << name;
      EXPECT_EQ(t.scalar_type(), at::kFloat) << name;
    }
  });
  EXPECT_FALSE(ShapesOnly::on());
}

TEST(LayerProperties, OptionsAndPatternsAreChecked) {
  for_all_layers([](const Mechanism& m, Layer& layer) {
    LayerConfig wrong = config(m);
    wrong.options["colour"] = "red";
    try {
      make_layer(m.card.id, wrong);
      ADD_FAILURE() << "no error";
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find("colour"), std::string::npos);
    }
    bool takes_any = false;
    for (const Pattern pattern : {Pattern::kCausalSelf, Pattern::kNoncausalSelf,
                                  Pattern::kCausalCross, Pattern::kNoncausalCross}) {
      takes_any |= layer.takes(pattern);
      if (layer.takes(pattern)) continue;
      Call call = call_of(m, layer, pattern);
      call.context = at::randn({1, 4, kHidden});
      EXPECT_THROW(layer.forward(at::randn({1, tokens_of(m, layer, 3), kHidden}), call), UsageError)
          << static_cast<int>(pattern);
    }
    EXPECT_TRUE(takes_any);
    EXPECT_GT(layer.flops(10), 0);
    EXPECT_EQ(layer.traits().linear_time, m.traits.linear_time);
  });
}

}  // namespace layer_property_test
}  // namespace heed::mixer
