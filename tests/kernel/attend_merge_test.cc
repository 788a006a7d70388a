// The merge rule (m, l, o): associative, commutative, with the empty part as its neutral element.
#include "kernel/attend/merge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace heed::kernel {
namespace {

struct Result {
  SoftmaxPart<double> part;
  double o = 0;
};

Result of(const std::vector<double>& logits, const std::vector<double>& values) {
  Result r;
  for (size_t i = 0; i < logits.size(); ++i) {
    merge_into(r.part, &r.o, {logits[i], 1.0}, &values[i], 1);
  }
  return r;
}

Result merged(Result a, const Result& b) {
  merge_into(a.part, &a.o, b.part, &b.o, 1);
  return a;
}

TEST(AttendMerge, EqualsTheSumInAnyOrder) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<Result> parts;
  double sum = 0, weighted = 0;
  for (int p = 0; p < 5; ++p) {
    std::vector<double> x, v;
    for (int i = 0; i < 7; ++i) {
      x.push_back(3 * normal(random)), v.push_back(normal(random));
      sum += std::exp2(x.back()), weighted += std::exp2(x.back()) * v.back();
    }
    parts.push_back(of(x, v));
  }
  const Result left =
      merged(merged(merged(merged(parts[0], parts[1]), parts[2]), parts[3]), parts[4]);
  const Result right =
      merged(parts[3], merged(merged(parts[4], parts[1]), merged(parts[2], parts[0])));
  for (const Result& r : {left, right}) {
    EXPECT_NEAR(r.part.lse(), std::log(sum), 1e-13);
    EXPECT_NEAR(r.o * r.part.inverse(), weighted / sum, 1e-13);
  }
}

TEST(AttendMerge, EmptyPartsChangeNothing) {
  const Result full = of({1.0, -2.0}, {3.0, 4.0});
  const Result empty;
  for (const Result& r : {merged(full, empty), merged(empty, full)}) {
    EXPECT_EQ(r.part.max, full.part.max);
    EXPECT_EQ(r.part.sum, full.part.sum);
    EXPECT_EQ(r.o, full.o);
  }
  const Result nothing = merged(empty, empty);
  EXPECT_EQ(nothing.part.sum, 0);
  EXPECT_EQ(nothing.part.inverse(), 0);
  EXPECT_EQ(nothing.part.lse(), -INFINITY);
  // The o of an empty part is not read.
  double o = 2, garbage = NAN;
  SoftmaxPart<double> part{0.0, 1.0};
  merge_into(part, &o, SoftmaxPart<double>{}, &garbage, 1);
  EXPECT_EQ(o, 2);
  merge_into(part, &o, SoftmaxPart<double>{-1e6, 1.0}, &o, 1);
  EXPECT_EQ(o, 2);
}

TEST(AttendMerge, HugeLogitsDoNotOverflow) {
  const Result r = merged(of({50000.0}, {1.0}), of({-50000.0, 49999.0}, {5.0, 7.0}));
  EXPECT_NEAR(r.part.lse(), 50000 * std::log(2.0) + std::log(1.5), 1e-9);
  EXPECT_NEAR(r.o * r.part.inverse(), (1.0 + 0.5 * 7.0) / 1.5, 1e-12);
}

TEST(AttendMerge, ReadsLogsumexp) {
  const Result r = of({1.0, 2.0}, {3.0, 4.0});
  const auto part = SoftmaxPart<double>::from_lse(r.part.lse());
  EXPECT_NEAR(part.lse(), r.part.lse(), 1e-14);
  EXPECT_EQ(SoftmaxPart<double>::from_lse(-INFINITY).sum, 0);
}

}  // namespace
}  // namespace heed::kernel
