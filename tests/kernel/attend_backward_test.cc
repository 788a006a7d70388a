// attend_backward against the double backward, and that against finite differences.
#include <gtest/gtest.h>

#include <cmath>

#include "kernel/attend_case.h"
#include "kernel/parallel.h"

namespace heed::kernel {
namespace {

void check(const AttendCase& c, double bound = 1e-5) {
  AttendData data(c);
  const auto want = data.gradients(attend_reference, attend_backward_reference);
  ASSERT_EQ(data.status, HEED_OK);
  for (int threads : {1, 2}) {
    ThreadPool pool(threads);
    const auto got =
        data.gradients([&](const AttendTable& t) { return attend_forward(t, pool.parallel()); },
                       [&](const AttendTable& t, const AttendGradJob* g) {
                         return attend_backward(t, g, pool.parallel());
                       });
    ASSERT_EQ(data.status, HEED_OK) << c;
    for (size_t i = 0; i < std::size(AttendData::kGradients); ++i) {
      const auto member = AttendData::kGradients[i];
      EXPECT_LE(relative_error(got.*member, want.*member), bound)
          << "grad of " << AttendData::kGradientNames[i] << " " << c;
    }
  }
}

TEST(AttendBackward, Sizes) {
  for (int64_t queries : {1, 7, 130, 250}) {
    for (int64_t keys : {3, 129, 260}) {
      for (int32_t dim : {1, 17, 64, 128}) {
        AttendCase c;
        c.queries = queries, c.keys = keys, c.head_dim = dim;
        c.value_dim = dim == 64 ? 64 : 30;
        c.causal = (queries + keys) % 2 == 0;
        check(c);
      }
    }
  }
}

TEST(AttendBackward, Groups) {
  for (int32_t group : {2, 3, 8, 100}) {
    AttendCase c;
    c.group = group, c.queries = 40, c.keys = 140, c.jobs = 2, c.page = 64;
    check(c);
  }
}

TEST(AttendBackward, Features) {
  for (int features = 0; features < 128; ++features) {
    AttendCase c;
    c.queries = 61, c.keys = 150, c.group = 2, c.head_dim = 24, c.value_dim = 20, c.jobs = 2;
    c.causal = features & 1;
    c.window = features & 2 ? 37 : 0, c.sinks = features & 4 ? 5 : 0;
    c.slopes = features & 8, c.bias = features & 16, c.hide = features & 32;
    c.weight = features & 64 ? Weight::kSigmoid : Weight::kSoftmax;
    c.soft_cap = features % 3 == 0 ? 2.5f : 0.0f;
    c.page = features % 5 == 0 ? 32 : 0;
    c.ring = features % 10 == 0;
    c.nan_padding = features % 2 == 0;
    c.seed = static_cast<uint32_t>(features);
    if (c.nan_padding && c.hide && c.bias)
      c.nan_padding = false;  // the double backward has no guard
    check(c);
  }
}

TEST(AttendBackward, BlockLists) {
  for (bool any : {false, true}) {
    AttendCase c;
    c.queries = 100, c.keys = 210, c.q_block = 24, c.k_block = 16, c.group = 2, c.page = 64;
    c.any = any, c.window = any ? 20 : 0, c.sinks = 3;
    check(c);
  }
}

// Every weight with everything that adds to logits, and a gradient that comes through lse.
TEST(AttendBackward, EveryWeight) {
  for (int32_t weight = 0; weight < kWeights; ++weight) {
    for (int features = 0; features < 16; ++features) {
      AttendCase c;
      c.weight = static_cast<Weight>(weight);
      c.queries = 75, c.keys = 140, c.group = 2, c.head_dim = 20, c.value_dim = 36, c.jobs = 2;
      c.causal = features & 1, c.grad_lse = features & 2, c.q_bias = features & 2;
      c.relative_bias = features & 4, c.log_weight = features & 8, c.bias = features & 4;
      c.window = features % 3 == 0 ? 30 : 0, c.page = features & 8 ? 48 : 0;
      c.soft_cap = features % 5 == 0 ? 2.0f : 0.0f;
      c.seed = static_cast<uint32_t>(features);
      check(c);
    }
  }
}

TEST(AttendBackward, Grids) {
  for (const std::vector<Axis>& axes : attend_grids()) {
    AttendCase c;
    c.axes = axes, c.causal = false, c.group = 2, c.head_dim = 16, c.value_dim = 24, c.jobs = 2;
    c.queries = c.keys = cells(axes), c.grad_lse = true;
    check(c);
  }
}

TEST(AttendBackward, WideHeads) {
  AttendCase c;
  c.head_dim = 576, c.value_dim = 512, c.queries = 40, c.keys = 70, c.group = 4;
  check(c);
}

TEST(AttendBackward, StorageTypes) {
  for (int32_t dtype : {HEED_BFLOAT16, HEED_FLOAT16}) {
    AttendCase c;
    c.q_dtype = c.kv_dtype = dtype, c.queries = 70, c.keys = 133, c.group = 3;
    check(c, dtype == HEED_BFLOAT16 ? 1.5e-2 : 3e-3);
    c.q_dtype = HEED_FLOAT32;
    check(c);
  }
}

TEST(AttendBackward, NothingToSee) {
  AttendCase c;
  c.queries = 9, c.keys = 0;
  check(c);
  c.keys = 4;
  check(c);
  c.queries = 0;
  check(c);
  c.jobs = 0;
  check(c);
}

TEST(AttendBackward, HiddenKeysMayBeNaN) {
  AttendCase c;
  c.queries = 30, c.keys = 140, c.bias = c.hide = true;
  AttendData clean(c);
  const auto want = clean.gradients(attend_reference, attend_backward_reference);
  AttendData poisoned(c);
  for (int64_t j = 0; j < c.keys; ++j) {
    if (std::isfinite(poisoned.bias()[j])) continue;
    for (int d = 0; d < 64; ++d) {
      reinterpret_cast<float*>(poisoned.k().data())[j * 64 + d] = NAN;
      reinterpret_cast<float*>(poisoned.v().data())[j * 64 + d] = NAN;
    }
  }
  const auto got = poisoned.gradients(
      [](const AttendTable& t) { return attend_forward(t, nullptr); },
      [](const AttendTable& t, const AttendGradJob* g) { return attend_backward(t, g, nullptr); });
  EXPECT_LE(relative_error(got.q, want.q), 1e-5);
  EXPECT_LE(relative_error(got.k, want.k), 1e-5);
  EXPECT_LE(relative_error(got.v, want.v), 1e-5);
  EXPECT_LE(relative_error(got.bias, want.bias), 1e-5);
}

TEST(AttendBackward, Deterministic) {
  AttendCase c;
  c.queries = 700, c.keys = 700, c.jobs = 1, c.slopes = c.bias = true;
  AttendData data(c);
  ThreadPool pool(3);
  const auto run = [&] {
    return data.gradients([&](const AttendTable& t) { return attend_forward(t, pool.parallel()); },
                          [&](const AttendTable& t, const AttendGradJob* g) {
                            return attend_backward(t, g, pool.parallel());
                          });
  };
  const auto a = run(), b = run();
  EXPECT_EQ(a.q, b.q);
  EXPECT_EQ(a.k, b.k);
  EXPECT_EQ(a.v, b.v);
  EXPECT_EQ(a.bias, b.bias);
  EXPECT_EQ(a.slopes, b.slopes);
}

// The derivative of sum(out grad_out) along one number, by central differences of the double
// reference.
template <class Number>
void check_differences(AttendData& data, Number* numbers, size_t count,
                       const std::vector<float>& gradient, const char* name, bool lse = false) {
  const auto* grad_out = reinterpret_cast<const float*>(data.grad_out().data());
  const auto objective = [&] {
    const auto result = data.reference();
    double sum = 0;
    for (size_t i = 0; i < result.out.size(); ++i) {
      sum += result.out[i] * static_cast<double>(grad_out[i]);
    }
    for (size_t i = 0; lse && i < result.lse.size(); ++i) {
      if (std::isfinite(result.lse[i])) {
        sum += static_cast<double>(result.lse[i]) * static_cast<double>(data.grad_lse()[i]);
      }
    }
    return sum;
  };
  for (size_t i = 0; i < count; i += 3) {
    const Number kept = numbers[i];
    if (!std::isfinite(kept)) continue;
    numbers[i] = kept + 0x1p-8f;
    const double up = objective(), step_up = numbers[i] - kept;
    numbers[i] = kept - 0x1p-8f;
    const double down = objective(), step_down = kept - numbers[i];
    numbers[i] = kept;
    EXPECT_NEAR(gradient[i], (up - down) / (step_up + step_down), 2e-4) << name << " " << i;
  }
}

TEST(AttendBackward, ReferenceEqualsFiniteDifferences) {
  for (int features = 0; features < 8; ++features) {
    AttendCase c;
    c.queries = 5, c.keys = 9, c.group = 2, c.head_dim = 4, c.value_dim = 3;
    c.slopes = c.bias = c.hide = true;
    c.weight = features & 1 ? Weight::kSigmoid : Weight::kSoftmax;
    c.soft_cap = features & 2 ? 1.5f : 0.0f;
    c.window = features & 4 ? 4 : 0, c.sinks = 1, c.causal = features != 5;
    AttendData data(c);
    const auto g = data.gradients(attend_reference, attend_backward_reference);
    const auto floats = [](std::vector<uint8_t>& x) { return reinterpret_cast<float*>(x.data()); };
    check_differences(data, floats(data.q()), g.q.size(), g.q, "q");
    check_differences(data, floats(data.k()), g.k.size(), g.k, "k");
    check_differences(data, floats(data.v()), g.v.size(), g.v, "v");
    check_differences(data, data.bias().data(), g.bias.size(), g.bias, "bias");
    check_differences(data, data.slopes().data(), 2, g.slopes, "slopes");
  }
}

TEST(AttendBackward, ReferenceThroughLseAndTablesEqualsFiniteDifferences) {
  for (int32_t weight = 0; weight < kWeights; ++weight) {
    for (bool causal : {false, true}) {
      AttendCase c;
      c.weight = static_cast<Weight>(weight);
      c.queries = 5, c.keys = 6, c.group = 2, c.head_dim = 4, c.value_dim = 3, c.causal = causal;
      c.q_bias = c.relative_bias = c.log_weight = c.grad_lse = true, c.page = 3;
      AttendData data(c);
      const bool lse = normalised(c.weight);
      const auto g = data.gradients(attend_reference, attend_backward_reference);
      const auto floats = [](std::vector<uint8_t>& x) {
        return reinterpret_cast<float*>(x.data());
      };
      check_differences(data, floats(data.q()), g.q.size(), g.q, "q", lse);
      check_differences(data, floats(data.k()), g.k.size(), g.k, "k", lse);
      check_differences(data, floats(data.v()), g.v.size(), g.v, "v", lse);
      check_differences(data, data.q_bias().data(), g.q_bias.size(), g.q_bias, "q_bias", lse);
      check_differences(data, data.relative_bias().data(), g.relative_bias.size(), g.relative_bias,
                        "relative_bias", lse);
      if (c.weight == Weight::kUrpe) {
        check_differences(data, data.relative_scale().data(), g.relative_scale.size(),
                          g.relative_scale, "relative_scale", lse);
      }
    }
  }
}

}  // namespace
}  // namespace heed::kernel
