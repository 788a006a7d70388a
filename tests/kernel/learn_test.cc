// The engine `learn` against its reference (float64, token by token) and, for gradients, against
// finite differences of the reference.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <functional>
#include <random>

#include "kernel/learn/learn.h"
#include "kernel/parallel.h"
#include "kernel/scan_helper.h"

namespace heed::kernel::test {
namespace {

struct LearnCase {
  int64_t batch = 1, time = 37, heads = 2, dk = 5, dv = 7, chunk = 16;
  bool norm = false, bias = false, momentum = false, decay = false, gain = false, initial = true;
  int32_t dtype = HEED_FLOAT32;
  std::vector<int64_t> cu_seqlens;
  uint64_t seed = 1;
  int64_t padding = 0;

  int64_t states() const {
    return cu_seqlens.empty() ? batch : static_cast<int64_t>(cu_seqlens.size()) - 1;
  }
};

enum Input { kQ, kK, kV, kAlpha, kEta, kTheta, kGain, kWeight, kBias, kState, kMomentum, kB, kAll };
constexpr const char* kNames[] = {"q",    "k",      "v",    "alpha", "eta",      "theta",
                                  "gain", "weight", "bias", "state", "momentum", "initial bias"};

// The inputs of a case, and its results in float32 and in float64.
struct LearnRun {
  LearnCase c;
  Stored in[kAll], out, final_state, final_momentum, final_bias;
  Stored out64, state64, momentum64, bias64;

  explicit LearnRun(const LearnCase& x, int32_t gates = HEED_FLOAT32) : c(x) {
    const int64_t b = c.batch, t = c.time, h = c.heads, n = c.states();
    std::mt19937_64 random(c.seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    const auto fill = [&](Input i, std::vector<int64_t> sizes, double scale, double shift,
                          bool token = false, bool even = false) {
      in[i] = Stored(token ? c.dtype : gates, std::move(sizes), token ? c.padding : 0);
      for (int64_t j = 0; j < in[i].count(); ++j) {
        in[i].set(j, shift + scale * (even ? uniform(random) : normal(random)));
      }
    };
    const double unit = 1 / std::sqrt(static_cast<double>(c.dk));
    fill(kQ, {b, t, h, c.dk}, 1, 0, true);
    fill(kK, {b, t, h, c.dk}, unit, 0, true);
    fill(kV, {b, t, h, c.dv}, 1, 0, true);
    if (c.decay) fill(kAlpha, {b, t, h}, 0.3, 0, false, true);
    if (c.momentum) fill(kEta, {b, t, h}, 0.8, 0.1, false, true);
    fill(kTheta, {b, t, h}, 0.1, 0.02, false, true);
    if (c.gain) fill(kGain, {b, t, h}, 0.5, 0.2, false, true);
    if (c.norm) fill(kWeight, {h, c.dv}, 0.3, 1), fill(kBias, {h, c.dv}, 0.3, 0);
    if (c.initial) {
      fill(kState, {n, h, c.dk, c.dv}, 0.5, 0);
      if (c.momentum) fill(kMomentum, {n, h, c.dk, c.dv}, 0.2, 0);
      if (c.bias) fill(kB, {n, h, c.dv}, 0.5, 0);
    }
    out = Stored(c.dtype, {b, t, h, c.dv}, c.padding);
    out64 = Stored(HEED_FLOAT64, {b, t, h, c.dv});
    final_state = Stored(HEED_FLOAT32, {n, h, c.dk, c.dv});
    state64 = Stored(HEED_FLOAT64, {n, h, c.dk, c.dv});
    final_momentum = Stored(HEED_FLOAT32, {n, h, c.dk, c.dv});
    momentum64 = Stored(HEED_FLOAT64, {n, h, c.dk, c.dv});
    final_bias = Stored(HEED_FLOAT32, {n, h, c.dv});
    bias64 = Stored(HEED_FLOAT64, {n, h, c.dv});
  }

  LearnCall inputs() {
    LearnCall a;
    auto& x = a.in;
    heed_view* views[] = {&x.q,
                          &x.k,
                          &x.v,
                          &x.alpha,
                          &x.eta,
                          &x.theta,
                          &x.gain,
                          &x.norm_weight,
                          &x.norm_bias,
                          &x.initial_state,
                          &x.initial_momentum,
                          &x.initial_bias};
    for (int i = 0; i < kAll; ++i) {
      if (!in[i].sizes.empty()) *views[i] = in[i].view();
    }
    if (!c.cu_seqlens.empty()) {
      a.head.cu_seqlens = c.cu_seqlens.data(), a.head.sequences = c.states();
    }
    a.options = {0.7, 1e-6, c.chunk, c.norm, c.bias};
    return a;
  }
  LearnCall call() {
    LearnCall a = inputs();
    a.in.out = out.view(), a.in.final_state = final_state.view();
    a.in.final_momentum = final_momentum.view(), a.in.final_bias = final_bias.view();
    return a;
  }
  LearnCall reference_call() {
    LearnCall a = inputs();
    a.in.out = out64.view(), a.in.final_state = state64.view();
    a.in.final_momentum = momentum64.view();
    if (c.bias) a.in.final_bias = bias64.view();
    return a;
  }
};

heed_message message;

heed_status run_pass(const LearnCall& call, int32_t pass, const heed_parallel* parallel = nullptr) {
  if (const char* reason = kLearnBackend.refuses(&call, pass)) ADD_FAILURE() << reason;
  const int64_t bytes = kLearnBackend.workspace(&call, pass, parallel ? parallel->threads : 1);
  std::vector<char> workspace(static_cast<size_t>(bytes), 0x7f);  // it may hold anything
  return kLearnBackend.run(&call, pass, workspace.data(), nullptr, parallel, &message);
}

void expect_forward(const LearnCase& c, double bound, const heed_parallel* parallel = nullptr) {
  SCOPED_TRACE(testing::Message() << "T " << c.time << " K " << c.dk << " V " << c.dv << " chunk "
                                  << c.chunk << " norm " << c.norm << " momentum " << c.momentum
                                  << " seed " << c.seed);
  LearnRun run(c);
  ASSERT_EQ(learn_reference(run.reference_call(), &message), HEED_OK) << message.text;
  ASSERT_EQ(run_pass(run.call(), HEED_FORWARD, parallel), HEED_OK) << message.text;
  EXPECT_LE(relative_error(run.out.values(), run.out64.values()), bound);
  EXPECT_LE(relative_error(run.final_state.values(), run.state64.values()), 2e-6);
  if (c.momentum) {
    EXPECT_LE(relative_error(run.final_momentum.values(), run.momentum64.values()), 2e-6);
  }
  if (c.bias) {
    EXPECT_LE(relative_error(run.final_bias.values(), run.bias64.values()), 2e-6);
  }
}

// Titans with and without momentum and decay; TTT-linear with and without a gain.
template <class Visit>
void for_every_rule(Visit visit) {
  for (int options = 0; options < 4; ++options) {
    LearnCase titans;
    titans.momentum = options % 2, titans.decay = options / 2;
    visit(titans);
    LearnCase ttt;
    ttt.norm = true, ttt.bias = options % 2, ttt.gain = options / 2;
    visit(ttt);
  }
}

TEST(LearnForward, EqualsReferenceOverRulesAndSizes) {
  const int64_t sizes[][4] = {{1, 1, 2, 1},     {5, 3, 7, 2},    {33, 16, 16, 16},
                              {64, 20, 33, 16}, {70, 65, 40, 7}, {40, 8, 64, 100}};
  ThreadPool threads(2);
  uint64_t seed = 1;
  for_every_rule([&](LearnCase c) {
    for (const auto& [time, dk, dv, chunk] : sizes) {
      c.time = time, c.dk = dk, c.dv = dv, c.chunk = chunk;
      c.batch = time % 2 + 1, c.heads = time % 3 + 1;
      c.initial = seed % 3 != 0;
      c.seed = seed++;
      expect_forward(c, 2e-6, seed % 2 ? threads.parallel() : nullptr);
    }
  });
}

TEST(LearnForward, PacksEmptySequencesAndPadding) {
  for_every_rule([](LearnCase c) {
    c.cu_seqlens = {0, 3, 3, 20, 37};
    c.padding = 3;
    expect_forward(c, 2e-6);
    c.cu_seqlens = {};
    c.time = 0;
    expect_forward(c, 2e-6);
  });
}

TEST(LearnForward, SixteenBitTokens) {
  for_every_rule([](LearnCase c) {
    c.dtype = HEED_BFLOAT16;
    expect_forward(c, 6e-3);
    c.dtype = HEED_FLOAT16;
    expect_forward(c, 1e-3);
  });
}

TEST(LearnForward, ExtremeGates) {
  LearnCase c;
  c.momentum = c.decay = true;
  for (int64_t chunk : {1, 16}) {
    c.chunk = chunk;
    LearnRun run(c);
    for (Input gate : {kAlpha, kEta, kTheta}) {
      for (int64_t i = 0; i < run.in[gate].count(); ++i) {
        if ((i * 7 + gate) % 3 == 0) run.in[gate].set(i, (i + gate) % 2);
      }
    }
    // A rate of 1 grows with long keys.
    for (int64_t i = 0; i < run.in[kK].count(); ++i) run.in[kK].set(i, run.in[kK].at(i) * 0.3);
    ASSERT_EQ(learn_reference(run.reference_call(), &message), HEED_OK);
    ASSERT_EQ(run_pass(run.call(), HEED_FORWARD), HEED_OK);
    EXPECT_LE(relative_error(run.out.values(), run.out64.values()), 2e-6);
  }
}

TEST(LearnForward, EveryTarget) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    for_every_rule([](const LearnCase& c) { expect_forward(c, 2e-6); });
  }
  hwy::SetSupportedTargetsForTest(0);
}

// ---- gradients

struct Outputs {
  double loss(LearnRun& run) const {
    EXPECT_EQ(learn_reference(run.reference_call(), &message), HEED_OK);
    double sum = 0;
    const Stored* results[] = {&run.out64, &run.state64, &run.momentum64, &run.bias64};
    for (size_t i = 0; i < 4; ++i) {
      for (int64_t j = 0; j < weights[i].count(); ++j) sum += weights[i].at(j) * results[i]->at(j);
    }
    return sum;
  }
  Stored weights[4];  // of out, final state, momentum, bias
};

void expect_gradients(const LearnCase& c, double bound, const heed_parallel* parallel = nullptr) {
  SCOPED_TRACE(testing::Message() << "chunk " << c.chunk << " norm " << c.norm << " bias " << c.bias
                                  << " momentum " << c.momentum << " decay " << c.decay << " gain "
                                  << c.gain);
  LearnRun run(c), wide(c, HEED_FLOAT64);
  for (int i = 0; i < kAll; ++i) {  // the same values, in a type that takes small differences
    if (run.in[i].sizes.empty()) continue;
    wide.in[i] = Stored(HEED_FLOAT64, run.in[i].sizes);
    for (int64_t j = 0; j < run.in[i].count(); ++j) wide.in[i].set(j, run.in[i].at(j));
  }
  Outputs outputs;
  std::mt19937_64 random(c.seed + 99);
  std::normal_distribution<double> normal;
  const Stored* shapes[] = {&run.out, &run.final_state, &run.final_momentum, &run.final_bias};
  const bool given[] = {true, true, c.momentum, c.bias};
  for (size_t i = 0; i < 4; ++i) {
    if (!given[i]) continue;
    outputs.weights[i] = Stored(HEED_FLOAT32, shapes[i]->sizes);
    for (int64_t j = 0; j < shapes[i]->count(); ++j) outputs.weights[i].set(j, normal(random));
  }
  LearnCall call = run.call();
  auto& grads = call.grad;
  grads.out = outputs.weights[0].view();
  grads.final_state = outputs.weights[1].view();
  if (c.momentum) grads.final_momentum = outputs.weights[2].view();
  if (c.bias) grads.final_bias = outputs.weights[3].view();
  heed_view* views[] = {&grads.q,
                        &grads.k,
                        &grads.v,
                        &grads.alpha,
                        &grads.eta,
                        &grads.theta,
                        &grads.gain,
                        &grads.norm_weight,
                        &grads.norm_bias,
                        &grads.initial_state,
                        &grads.initial_momentum,
                        &grads.initial_bias};
  Stored results[kAll];
  for (int i = 0; i < kAll; ++i) {
    if (run.in[i].sizes.empty()) continue;
    results[i] = Stored(HEED_FLOAT32, run.in[i].sizes);
    *views[i] = results[i].view();
  }
  ASSERT_EQ(run_pass(call, HEED_BACKWARD, parallel), HEED_OK) << message.text;
  for (int i = 0; i < kAll; ++i) {
    if (run.in[i].sizes.empty()) continue;
    std::vector<double> expected;
    for (int64_t j = 0; j < run.in[i].count(); ++j) {
      const double value = wide.in[i].at(j), step = 1e-5;
      wide.in[i].set(j, value + step);
      const double above = outputs.loss(wide);
      wide.in[i].set(j, value - step);
      const double below = outputs.loss(wide);
      wide.in[i].set(j, value);
      expected.push_back((above - below) / (2 * step));
    }
    EXPECT_LE(relative_error(results[i].values(), expected), bound) << kNames[i];
  }
}

TEST(LearnBackward, EqualsFiniteDifferences) {
  ThreadPool threads(2);
  for_every_rule([&](LearnCase c) {
    for (int64_t chunk : {1, 4, 16}) {
      c.time = 11, c.chunk = chunk, c.dk = 3, c.dv = 4;
      c.seed = static_cast<uint64_t>(chunk);
      expect_gradients(c, 1e-5, chunk == 4 ? threads.parallel() : nullptr);
    }
  });
}

TEST(LearnBackward, SeveralSegmentsAndPacks) {
  for_every_rule([](LearnCase c) {
    c.time = 70, c.chunk = 3, c.heads = 1, c.dk = 2, c.dv = 8;
    expect_gradients(c, 1e-5);
    c.cu_seqlens = {0, 5, 5, 70};
    c.chunk = 1;
    expect_gradients(c, 1e-5);
  });
}

TEST(LearnBackward, EveryTarget) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    for_every_rule([](LearnCase c) {
      c.time = 7, c.chunk = 3, c.dk = 3, c.dv = 4;
      expect_gradients(c, 1e-5);
    });
  }
  hwy::SetSupportedTargetsForTest(0);
}

// ---- chunks that stay open

// The tensors of tokens [from, from + length).
LearnCall slice(LearnRun& run, int64_t from, int64_t length) {
  LearnCall call = run.inputs();
  auto& x = call.in;
  x.out = run.out.view();
  for (heed_view* view : {&x.q, &x.k, &x.v, &x.out, &x.alpha, &x.eta, &x.theta, &x.gain}) {
    if (view->data == nullptr) continue;
    view->data = static_cast<char*>(view->data) + from * view->strides[1] * 4;
    view->sizes[1] = length;
  }
  return call;
}

// Pieces of the given lengths, by steps where they have one token, and the state after them.
void expect_pieces(const LearnCase& c, const std::vector<int64_t>& lengths) {
  LearnRun run(c);
  ASSERT_EQ(learn_reference(run.reference_call(), &message), HEED_OK) << message.text;
  Stored position(HEED_FLOAT32, {c.batch});
  Stored state = run.in[kState], running = state, momentum = run.in[kMomentum];
  Stored bias = run.in[kB], running_bias = bias;
  int64_t from = 0;
  for (const int64_t length : lengths) {
    LearnCall call = slice(run, from, length);
    auto& x = call.in;
    x.initial_state = x.final_state = state.view();
    x.initial_running = x.final_running = running.view();
    x.initial_position = x.final_position = position.view();
    if (c.momentum) x.initial_momentum = x.final_momentum = momentum.view();
    if (c.bias) {
      x.initial_bias = x.final_bias = bias.view();
      x.initial_running_bias = x.final_running_bias = running_bias.view();
    }
    ASSERT_EQ(run_pass(call, length == 1 ? HEED_STEP : HEED_FORWARD), HEED_OK) << message.text;
    from += length;
    EXPECT_EQ(position.at(0), from % c.chunk);
  }
  ASSERT_EQ(from, c.time);
  EXPECT_LE(relative_error(run.out.values(), run.out64.values()), 2e-6) << c.chunk;
}

TEST(LearnStep, PiecesAndStepsEqualOnePass) {
  for_every_rule([](LearnCase c) {
    c.batch = 2;
    for (int64_t chunk : {1, 8, 100}) {
      c.chunk = chunk;
      expect_pieces(c, std::vector<int64_t>(static_cast<size_t>(c.time), 1));
      expect_pieces(c, {3, 1, 2, 8, 1, 5, 16, 1});
    }
  });
}

TEST(LearnCheck, SaysWhatIsWrong) {
  LearnCase c;
  c.momentum = true;
  const auto said = [&](const std::function<void(LearnCall&)>& spoil) {
    LearnRun run(c);
    LearnCall call = run.call();
    spoil(call);
    EXPECT_EQ(run_pass(call, HEED_FORWARD), HEED_INVALID_ARGUMENT);
    return std::string(message.text);
  };
  EXPECT_EQ(said([](LearnCall& a) { a.in.k.sizes[3] = 4; }),
            "learn: k has shape [1,37,2,4], expected [B,T,H,K] = [1,37,2,5]");
  EXPECT_EQ(said([](LearnCall& a) { a.in.v = heed_view{}; }), "learn: v [B,T,H,V] is missing");
  EXPECT_EQ(said([](LearnCall& a) { a.options.chunk = 0; }), "learn: chunk must be at least 1");
  EXPECT_EQ(said([](LearnCall& a) { a.in.gain = a.in.theta; }),
            "learn: gain does not go with alpha or eta");
  EXPECT_EQ(said([](LearnCall& a) { a.options.norm = 1; }),
            "learn: norm needs norm_weight and norm_bias");
  EXPECT_EQ(said([](LearnCall& a) { a.in.initial_running = a.in.initial_state; }),
            "learn: initial_position, initial_running and, with bias, initial_running_bias go "
            "together");
}

}  // namespace
}  // namespace heed::kernel::test
