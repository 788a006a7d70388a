// The engine `pool` against its reference (float64, a weight for every key and query) and, for
// gradients, against finite differences of the reference.
#include "kernel/pool/pool.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <functional>
#include <random>

#include "kernel/parallel.h"
#include "kernel/scan_helper.h"

namespace heed::kernel::test {
namespace {

struct PoolCase {
  int64_t batch = 1, queries = 37, keys = 29, heads = 4, kv_heads = 2, dm = 5, dv = 7;
  bool weights = false, scales = false;
  PoolOptions options;
  int32_t dtype = HEED_FLOAT32;
  std::vector<int64_t> cu_seqlens;
  uint64_t seed = 1;
  int64_t padding = 0;
};

constexpr const char* kNames[] = {"q", "k", "v", "key_weight", "row_scale"};

struct PoolRun {
  PoolCase c;
  Stored in[5], out, out64;

  explicit PoolRun(const PoolCase& x, bool wide = false) : c(x) {
    const int64_t b = c.batch, t = c.queries, s = c.keys, h = c.heads, j = c.kv_heads;
    std::mt19937_64 random(c.seed);
    std::normal_distribution<double> normal;
    const auto fill = [&](int i, std::vector<int64_t> sizes, bool positive, bool token) {
      in[i] = Stored(token ? c.dtype : HEED_FLOAT32, std::move(sizes), token ? c.padding : 0);
      for (int64_t e = 0; e < in[i].count(); ++e) {
        const double value = normal(random);
        in[i].set(e, positive ? 0.1 + std::abs(value) : value);
      }
      if (!wide) return;  // the same values in a type that takes small differences
      Stored copy(HEED_FLOAT64, in[i].sizes);
      for (int64_t e = 0; e < copy.count(); ++e) copy.set(e, in[i].at(e));
      in[i] = copy;
    };
    fill(0, {b, t, h, c.dm}, true, true);
    fill(1, {b, s, j, c.dm}, true, true);
    fill(2, {b, s, j, c.dv}, false, true);
    if (c.weights) fill(3, {b, s, j}, true, false);
    if (c.scales) fill(4, {b, t, h}, false, false);
    out = Stored(c.dtype, {b, t, h, c.dv}, c.padding);
    out64 = Stored(HEED_FLOAT64, {b, t, h, c.dv});
  }

  PoolCall call(bool reference = false) {
    PoolCall a;
    a.options = c.options;
    heed_view* views[] = {&a.in.q, &a.in.k, &a.in.v, &a.in.key_weight, &a.in.row_scale};
    for (int i = 0; i < 5; ++i) {
      if (!in[i].sizes.empty()) *views[i] = in[i].view();
    }
    if (!c.cu_seqlens.empty()) {
      a.head.cu_seqlens = c.cu_seqlens.data();
      a.head.sequences = static_cast<int64_t>(c.cu_seqlens.size()) - 1;
    }
    a.in.out = (reference ? out64 : out).view();
    return a;
  }
};

heed_message message;

heed_status run_pass(const PoolCall& call, int32_t pass, const heed_parallel* parallel = nullptr) {
  const int64_t bytes = kPoolBackend.workspace(&call, pass, parallel ? parallel->threads : 1);
  std::vector<char> workspace(static_cast<size_t>(bytes), 0x7f);  // it may hold anything
  return kPoolBackend.run(&call, pass, workspace.data(), nullptr, parallel, &message);
}

// Unnormalised, normalised, clamped, InLine, MALA, and all of it at once.
template <class Visit>
void for_every_epilogue(Visit visit) {
  const PoolOptions options[] = {{},
                                 {1, 0, 1, 0, 0, 1e-6, 0, 0},
                                 {1, 0, 1, 0, 0, 300, 0, 1},
                                 {0.4, 1, 0, 1, -1, 0, 1, 0},
                                 {0.4, 1, 1, 0, -1, 1e-6, 1, 0},
                                 {0.7, 0.3, 0.8, 0.4, -0.2, 0.1, 1, 0}};
  uint64_t seed = 1;
  for (const PoolOptions& o : options) {
    PoolCase c;
    c.options = o, c.seed = seed;
    c.weights = seed % 2 == 0, c.scales = seed % 3 == 0;
    ++seed;
    visit(c);
  }
}

void expect_forward(const PoolCase& c, double bound, const heed_parallel* parallel = nullptr) {
  SCOPED_TRACE(testing::Message() << "T " << c.queries << " S " << c.keys << " M " << c.dm << " V "
                                  << c.dv << " seed " << c.seed);
  PoolRun run(c);
  ASSERT_EQ(pool_reference(run.call(true), &message), HEED_OK) << message.text;
  ASSERT_EQ(run_pass(run.call(), HEED_FORWARD, parallel), HEED_OK) << message.text;
  EXPECT_LE(relative_error(run.out.values(), run.out64.values()), bound);
}

TEST(PoolForward, EqualsReferenceOverEpiloguesAndSizes) {
  const int64_t sizes[][4] = {{1, 1, 1, 1},      {3, 5, 2, 9},    {64, 64, 16, 16},
                              {65, 130, 33, 20}, {200, 1, 8, 64}, {1, 300, 48, 40}};
  ThreadPool threads(3);
  for_every_epilogue([&](PoolCase c) {
    for (const auto& [t, s, dm, dv] : sizes) {
      c.queries = t, c.keys = s, c.dm = dm, c.dv = dv;
      c.batch = t % 2 + 1;
      expect_forward(c, 2e-6, s % 2 ? threads.parallel() : nullptr);
    }
  });
}

// Thousands of keys whose features are small and alike: a sum one by one would round them all the
// same way.
TEST(PoolForward, LongSumsDoNotDrift) {
  PoolCase c;
  c.queries = 3, c.keys = 6000, c.heads = c.kv_heads = 1, c.dm = 3, c.dv = 3;
  for (const auto& [a1, b0, b1] : {std::tuple{1.0, 0.0, 0.0}, {0.0, 1.0, -1.0}}) {
    c.options = {};
    c.options.a0 = 1 - a1, c.options.a1 = a1, c.options.b0 = b0, c.options.b1 = b1;
    c.options.by_count = b1 != 0;
    PoolRun run(c);
    for (int64_t i = 0; i < run.in[1].count(); ++i) {
      run.in[1].set(i, i / 3 % 2 ? 0.01 : run.in[1].at(i));
    }
    ASSERT_EQ(pool_reference(run.call(true), &message), HEED_OK) << message.text;
    ASSERT_EQ(run_pass(run.call(), HEED_FORWARD), HEED_OK) << message.text;
    EXPECT_LE(relative_error(run.out.values(), run.out64.values()), 2e-6);
  }
}

TEST(PoolForward, PacksEmptySequencesAndPadding) {
  for_every_epilogue([](PoolCase c) {
    c.keys = c.queries;
    c.cu_seqlens = {0, 3, 3, 20, 37};
    c.padding = 2;
    expect_forward(c, 2e-6);
    c.cu_seqlens = {}, c.queries = 0;
    expect_forward(c, 2e-6);
    c.queries = 4, c.keys = 0;
    PoolRun run(c);
    ASSERT_EQ(run_pass(run.call(), HEED_FORWARD), HEED_OK) << message.text;
    for (double x : run.out.values()) EXPECT_EQ(x, 0);  // no keys
  });
}

TEST(PoolForward, SixteenBitTokens) {
  for_every_epilogue([](PoolCase c) {
    c.dtype = HEED_BFLOAT16;
    expect_forward(c, 6e-3);
    c.dtype = HEED_FLOAT16;
    expect_forward(c, 1e-3);
  });
}

TEST(PoolForward, EveryTarget) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    for_every_epilogue([](const PoolCase& c) { expect_forward(c, 2e-6); });
  }
  hwy::SetSupportedTargetsForTest(0);
}

void expect_gradients(const PoolCase& c, const heed_parallel* parallel = nullptr) {
  SCOPED_TRACE(testing::Message() << "seed " << c.seed);
  PoolRun run(c), wide(c, true);
  Stored weights(HEED_FLOAT32, run.out.sizes);
  std::mt19937_64 random(c.seed + 99);
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < weights.count(); ++i) weights.set(i, normal(random));
  const auto loss = [&] {
    EXPECT_EQ(pool_reference(wide.call(true), &message), HEED_OK) << message.text;
    double sum = 0;
    for (int64_t i = 0; i < weights.count(); ++i) sum += weights.at(i) * wide.out64.at(i);
    return sum;
  };
  PoolCall call = run.call();
  call.grad.out = weights.view();
  heed_view* views[] = {&call.grad.q, &call.grad.k, &call.grad.v, &call.grad.key_weight,
                        &call.grad.row_scale};
  Stored results[5];
  for (int i = 0; i < 5; ++i) {
    if (run.in[i].sizes.empty()) continue;
    results[i] = Stored(HEED_FLOAT32, run.in[i].sizes);
    *views[i] = results[i].view();
  }
  ASSERT_EQ(run_pass(call, HEED_BACKWARD, parallel), HEED_OK) << message.text;
  for (int i = 0; i < 5; ++i) {
    if (run.in[i].sizes.empty()) continue;
    std::vector<double> expected;
    for (int64_t j = 0; j < run.in[i].count(); ++j) {
      const double value = wide.in[i].at(j), step = 1e-5;
      wide.in[i].set(j, value + step);
      const double above = loss();
      wide.in[i].set(j, value - step);
      expected.push_back((above - loss()) / (2 * step));
      wide.in[i].set(j, value);
    }
    EXPECT_LE(relative_error(results[i].values(), expected), 1e-5) << kNames[i];
  }
}

TEST(PoolBackward, EqualsFiniteDifferences) {
  ThreadPool threads(3);
  for_every_epilogue([&](PoolCase c) {
    c.queries = 9, c.keys = 7, c.dm = 3, c.dv = 4;
    expect_gradients(c);
    c.queries = 70, c.keys = 67, c.dm = 2, c.dv = 2, c.heads = 2;
    expect_gradients(c, threads.parallel());
    c.queries = c.keys = 9;
    c.cu_seqlens = {0, 4, 4, 9};
    expect_gradients(c);
  });
}

TEST(PoolBackward, EveryTarget) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    for_every_epilogue([](PoolCase c) {
      c.queries = 9, c.keys = 7, c.dm = 3, c.dv = 4;
      expect_gradients(c);
    });
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(PoolCheck, SaysWhatIsWrong) {
  const auto said = [](const std::function<void(PoolCall&)>& spoil) {
    PoolRun run(PoolCase{});
    PoolCall call = run.call();
    spoil(call);
    EXPECT_EQ(run_pass(call, HEED_FORWARD), HEED_INVALID_ARGUMENT);
    return std::string(message.text);
  };
  EXPECT_EQ(said([](PoolCall& a) { a.in.v.sizes[1] = 4; }),
            "pool: v has shape [1,4,2,7], expected [B,S,J,V] = [1,29,2,7]");
  EXPECT_EQ(said([](PoolCall& a) { a.in.q.sizes[2] = a.in.out.sizes[2] = 3; }),
            "pool: H = 3 query heads are no multiple of J = 2 heads of keys");
  EXPECT_EQ(said([](PoolCall& a) {
              static const int64_t kOffsets[] = {0, 37};
              a.head.cu_seqlens = kOffsets, a.head.sequences = 1;
            }),
            "pool: a pack (cu_seqlens) needs as many keys as queries, not S = 29, T = 37");
  EXPECT_STREQ(kPoolBackend.refuses(nullptr, HEED_STEP),
               "a pooled read has no state; its causal form is scan");
}

}  // namespace
}  // namespace heed::kernel::test
