// attend_forward against the double reference, over sizes, features and thread counts.
#include <gtest/gtest.h>

#include <cmath>

#include "kernel/attend_case.h"
#include "kernel/parallel.h"

namespace heed::kernel {
namespace {

double bound(const AttendCase& c) {
  if (c.q_dtype == HEED_BFLOAT16) return 6e-3;
  if (c.q_dtype == HEED_FLOAT16) return 1e-3;
  return 2e-6;
}

void check(const AttendCase& c, double extra = 0) {
  AttendData data(c);
  const auto want = data.reference();
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    const auto got =
        data.run([&](const AttendTable& t) { return attend_forward(t, pool.parallel()); });
    ASSERT_EQ(data.status, HEED_OK) << c;
    EXPECT_LE(relative_error(got.out, want.out), bound(c) + extra) << c << " threads " << threads;
    EXPECT_LE(relative_error(got.lse, want.lse), 2e-6 + extra) << c << " threads " << threads;
  }
}

TEST(AttendForward, SizesAndDims) {
  for (int64_t queries : {1, 2, 5, 7, 33, 130, 300}) {
    for (int64_t keys : {1, 3, 16, 127, 129, 400}) {
      for (int32_t dim : {1, 8, 17, 64, 128}) {
        AttendCase c;
        c.queries = queries, c.keys = keys, c.head_dim = dim,
        c.value_dim = 81 - dim > 0 ? 81 - dim : 64;
        c.causal = (queries + keys) % 2 == 0;
        check(c);
      }
    }
  }
}

TEST(AttendForward, LargeDims) {
  for (int32_t dim : {160, 255, 256}) {
    for (int64_t queries : {1, 40}) {
      AttendCase c;
      c.queries = queries, c.keys = 150, c.head_dim = dim, c.value_dim = dim == 160 ? 256 : dim;
      check(c);
    }
  }
}

TEST(AttendForward, Groups) {
  for (int32_t group : {1, 2, 3, 4, 7, 8, 12, 40}) {
    for (int64_t queries : {1, 2, 3, 20, 100}) {
      AttendCase c;
      c.group = group, c.queries = queries, c.keys = 260, c.jobs = 3, c.page = 64;
      check(c);
    }
  }
}

TEST(AttendForward, Features) {
  for (int64_t queries : {1, 6, 50, 210}) {
    for (int features = 0; features < 128; ++features) {
      AttendCase c;
      c.queries = queries, c.keys = 205, c.group = 2, c.head_dim = 32, c.value_dim = 48;
      c.causal = features & 1;
      c.window = features & 2 ? 37 : 0, c.sinks = features & 4 ? 5 : 0;
      c.slopes = features & 8, c.bias = features & 16, c.hide = features & 32;
      c.weight = features & 64 ? Weight::kSigmoid : Weight::kSoftmax;
      c.soft_cap = features % 3 == 0 ? 2.5f : 0.0f;
      c.page = features % 5 == 0 ? 64 : 0;
      c.ring = features % 10 == 0;
      c.nan_padding = features % 2 == 0;
      c.seed = static_cast<uint32_t>(features);
      check(c);
    }
  }
}

TEST(AttendForward, StorageTypes) {
  for (int32_t q : {HEED_FLOAT32, HEED_BFLOAT16, HEED_FLOAT16}) {
    for (int32_t kv : {HEED_FLOAT32, HEED_BFLOAT16, HEED_FLOAT16}) {
      for (int64_t queries : {1, 3, 70}) {
        for (int32_t dim : {64, 40, 7}) {
          AttendCase c;
          c.q_dtype = q, c.kv_dtype = kv, c.queries = queries, c.keys = 333, c.group = 3;
          c.head_dim = dim, c.value_dim = dim, c.page = 64, c.nan_padding = dim == 40;
          check(c);
        }
      }
    }
  }
}

TEST(AttendForward, BlockLists) {
  for (int64_t queries : {1, 30, 200}) {
    for (int32_t k_block : {1, 16, 100}) {
      for (bool causal : {false, true}) {
        AttendCase c;
        c.queries = queries, c.keys = 210, c.causal = causal, c.q_block = 24, c.k_block = k_block;
        c.page = causal ? 64 : 0, c.window = k_block == 16 ? 50 : 0, c.sinks = 3, c.group = 2;
        check(c);
      }
    }
  }
}

TEST(AttendForward, ListsOrWindow) {
  for (int64_t queries : {1, 30, 200}) {
    for (int32_t k_block : {1, 16, 100}) {
      AttendCase c;
      c.queries = queries, c.keys = 210, c.q_block = 24, c.k_block = k_block, c.any = true;
      c.page = k_block == 16 ? 64 : 0, c.window = 20, c.sinks = 3, c.group = 2;
      c.causal = k_block != 100;
      check(c);
    }
  }
}

TEST(AttendForward, Grids) {
  for (const std::vector<Axis>& axes : attend_grids()) {
    for (int32_t group : {1, 3}) {
      AttendCase c;
      c.axes = axes, c.causal = false, c.group = group, c.head_dim = 24, c.value_dim = 40;
      c.queries = c.keys = cells(axes), c.jobs = 2, c.page = group == 3 ? 64 : 0;
      check(c);
      c.queries = 5;  // the last cells of the grid: a step of decoding
      check(c);
    }
  }
}

TEST(AttendForward, EveryWeight) {
  for (int32_t weight = 0; weight < kWeights; ++weight) {
    for (int features = 0; features < 16; ++features) {
      AttendCase c;
      c.weight = static_cast<Weight>(weight);
      c.queries = features % 2 ? 3 : 80, c.keys = 190, c.group = 2, c.head_dim = 24;
      c.causal = features & 2, c.q_bias = features & 4, c.relative_bias = features & 8;
      c.log_weight = features & 4, c.bias = features & 1, c.hide = features & 2;
      c.window = features % 3 == 0 ? 30 : 0, c.page = features & 8 ? 48 : 0;
      check(c);
    }
  }
}

TEST(AttendForward, WideHeads) {  // latent attention reads 576 numbers a key and 512 a value
  for (int64_t queries : {1, 60}) {
    AttendCase c;
    c.head_dim = 576, c.value_dim = 512, c.queries = queries, c.keys = 150, c.group = 8;
    check(c);
  }
}

TEST(AttendForward, NothingToSee) {
  AttendCase c;
  c.queries = 9, c.keys = 0;
  check(c);
  c.keys = 4;  // the first five queries stand before every key
  check(c);
  c.queries = 0;
  check(c);
  c.jobs = 0;
  check(c);
  c = {};
  c.queries = 70, c.keys = 3, c.group = 3, c.window = 2;
  check(c);
}

TEST(AttendForward, HiddenValuesMayBeNaN) {
  // Keys behind the last one that a query sees hold NaN: only queries from there on may notice.
  for (int64_t queries : {4, 60}) {
    AttendCase c;
    c.queries = queries, c.keys = 140, c.group = 2;
    AttendData data(c);
    const auto want = data.reference();
    for (int d = 0; d < 64; ++d) {
      reinterpret_cast<float*>(data.k().data())[139 * 64 + d] = NAN;
      reinterpret_cast<float*>(data.v().data())[139 * 64 + d] = NAN;
    }
    const auto got = data.run([](const AttendTable& t) { return attend_forward(t, nullptr); });
    for (size_t i = 0; i < got.out.size(); ++i) {
      if (i < got.out.size() - 2 * 64) {
        ASSERT_NEAR(got.out[i], want.out[i], 1e-5);
      } else {
        ASSERT_TRUE(std::isnan(got.out[i]));
      }
    }
  }
}

TEST(AttendForward, HugeLogits) {
  for (int64_t queries : {1, 40}) {
    AttendCase c;
    c.queries = queries, c.keys = 200, c.q_scale = 10000;
    check(c, 0x1p-23 * 50000);
    c.weight = Weight::kSigmoid;
    check(c, 0x1p-23 * 50000);
  }
}

TEST(AttendForward, LongSums) {
  AttendCase c;
  c.queries = 12, c.keys = 20000, c.causal = false;
  check(c);
  c.queries = 1, c.kv_dtype = HEED_FLOAT16, c.group = 3, c.page = 64;
  check(c);
}

TEST(AttendForward, SameBytesWhereNothingChanged) {
  // Deterministic for a thread count, and pages cut the same keys into the same tiles.
  AttendCase c;
  c.queries = 3, c.keys = 5000, c.group = 3, c.jobs = 2;
  AttendData one(c);
  c.page = 64;
  AttendData pages(c);
  ThreadPool pool(2);
  const auto run = [&](const AttendTable& t) { return attend_forward(t, pool.parallel()); };
  const auto a = one.run(run), b = one.run(run), paged = pages.run(run);
  EXPECT_EQ(a.out, b.out);
  EXPECT_EQ(a.lse, b.lse);
  EXPECT_LE(relative_error(paged.out, a.out), 5e-7);
}

TEST(AttendForward, RefusesWhatItCannotTake) {
  AttendCase c;
  AttendData data(c);
  AttendTable table = data.table();
  table.head_dim = 0;
  EXPECT_EQ(attend_forward(table, nullptr), HEED_INVALID_ARGUMENT);
  table = data.table();
  table.kv_dtype = HEED_INT32;
  EXPECT_EQ(attend_forward(table, nullptr), HEED_INVALID_ARGUMENT);
  table = data.table();
  table.group = 0;
  EXPECT_EQ(attend_forward(table, nullptr), HEED_INVALID_ARGUMENT);
  table = data.table();
  table.weight = static_cast<Weight>(kWeights);
  EXPECT_EQ(attend_forward(table, nullptr), HEED_INVALID_ARGUMENT);
  table = data.table();
  table.weight = Weight::kGeneric;  // without its function
  EXPECT_EQ(attend_forward(table, nullptr), HEED_INVALID_ARGUMENT);
  table.weight = Weight::kUrpe;  // without its table
  EXPECT_EQ(attend_forward(table, nullptr), HEED_INVALID_ARGUMENT);
  table = data.table();
  Axis axis{1, 2, 1, false};  // a window wider than the axis
  data.jobs()[0].axes = &axis, data.jobs()[0].rank = 1;
  EXPECT_EQ(attend_forward(table, nullptr), HEED_INVALID_ARGUMENT);
  data.jobs()[0].axes = nullptr;
  table = data.table();
  table.jobs = nullptr;
  EXPECT_EQ(attend_forward(table, nullptr), HEED_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace heed::kernel
