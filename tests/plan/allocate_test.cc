#include "plan/allocate.h"

#include <gtest/gtest.h>

#include <random>

#include "io/error.h"

namespace heed::plan {
namespace allocate_test {

double total_loss(const std::vector<std::vector<Option>>& options, const std::vector<int>& chosen) {
  double sum = 0;
  for (size_t h = 0; h < options.size(); ++h) sum += options[h][chosen[h]].loss;
  return sum;
}

// The best allocation by trying all.
double brute_force(const std::vector<std::vector<Option>>& options,
                   const std::vector<int64_t>& budgets, size_t h = 0) {
  for (int64_t left : budgets) {
    if (left < 0) return INFINITY;
  }
  if (h == options.size()) return 0;
  double best = INFINITY;
  for (const auto& option : options[h]) {
    auto left = budgets;
    for (size_t n = 0; n < left.size(); ++n) left[n] -= option.bytes[n];
    best = std::min(best, option.loss + brute_force(options, left, h + 1));
  }
  return best;
}

TEST(Allocate, EqualsBruteForceAndKeepsEveryBudget) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<std::vector<Option>> options(6);
    for (auto& head : options) {
      for (int64_t window : {1, 2, 4, 8}) {
        const int64_t tokens = window * 10;
        head.push_back(
            {std::exponential_distribution<>(1.0)(random) / window, {tokens, tokens * 2}});
      }
    }
    const std::vector<int64_t> budgets{200, 380};
    const auto chosen = allocate(options, budgets);
    std::vector<int64_t> used(2, 0);
    for (size_t h = 0; h < options.size(); ++h) {
      for (int n = 0; n < 2; ++n) used[n] += options[h][chosen[h]].bytes[n];
    }
    EXPECT_LE(used[0], budgets[0]);
    EXPECT_LE(used[1], budgets[1]);
    const double best = brute_force(options, budgets);
    EXPECT_LE(total_loss(options, chosen), best * (1 + 2e-3) + 1e-12);
  }
}

TEST(Allocate, FullBudgetTakesTheLosslessOptions) {
  std::vector<std::vector<Option>> options(90);
  for (auto& head : options) head = {{1.0, {64}}, {0.5, {512}}, {0.0, {4096}}};
  for (int p : allocate(options, {90 * 4096})) EXPECT_EQ(p, 2);
}

TEST(Allocate, SaysWhatTheLeastBudgetIs) {
  std::vector<std::vector<Option>> options(3, {{1.0, {64}}, {0.0, {128}}});
  try {
    allocate(options, {100});
    FAIL();
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("192"), std::string::npos);
  }
}

// At any price of a byte the hull holds what is best.
TEST(Allocate, TheHullHoldsWhatAnyPriceChooses) {
  std::mt19937 random(4);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<Option> options;
    for (int i = 0; i < 60; ++i) {
      options.push_back(
          {std::exponential_distribution<>(1.0)(random), {static_cast<int64_t>(random() % 1000)}});
    }
    const std::vector<int> hull = lower_hull(options);
    for (double price = 1e-5; price < 1; price *= 1.3) {
      const auto sum = [&](const Option& o) {
        return o.loss + price * static_cast<double>(o.bytes[0]);
      };
      double best = 1e9, of_hull = 1e9;
      for (const Option& o : options) best = std::min(best, sum(o));
      for (const int i : hull) of_hull = std::min(of_hull, sum(options[i]));
      EXPECT_DOUBLE_EQ(of_hull, best);
    }
    for (size_t i = 1; i < hull.size(); ++i) {
      EXPECT_GT(options[hull[i]].bytes[0], options[hull[i - 1]].bytes[0]);
      EXPECT_LT(options[hull[i]].loss, options[hull[i - 1]].loss);
    }
  }
}

}  // namespace allocate_test
}  // namespace heed::plan
