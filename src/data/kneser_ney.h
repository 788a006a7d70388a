// Interpolated modified Kneser-Ney n-grams over token ids: the baseline that a trained model has to
// beat. Chen & Goodman, "An empirical study of smoothing techniques for language modeling"
// (TR-10-98), section 4.1 and equations 26-28:
//
//   p(w | c) = max(0, n(c w) - D(n(c w))) / n(c) + gamma(c) p(w | c without its first token)
//   gamma(c) = (D1 N1(c) + D2 N2(c) + D3 N3+(c)) / n(c)
//   Y = n1 / (n1 + 2 n2), D1 = 1 - 2 Y n2/n1, D2 = 2 - 3 Y n3/n2, D3 = 3 - 4 Y n4/n3
//
// n is the count at the highest order and the number of different tokens before the n-gram below
// it; the lowest order is interpolated with 1 / vocabulary. n1..n4: n-grams with that count, by
// order.
//
// All n-grams lie in sorted arrays (20 bytes each): 50 million training tokens of order 5
// take about 2 GB while building, 1.5 GB after.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/corpus.h"
#include "io/progress.h"

namespace heed::data {

class KneserNey {
 public:
  static constexpr int kMaxOrder = 8;

  // Counts all of `corpus`. Before a document stand `order` - 1 tokens `boundary`; `vocab` <=
  // 65536.
  KneserNey(const Corpus& corpus, int order, int64_t vocab, int32_t boundary,
            Progress& progress = no_progress());

  // p(w | context), of which the last order - 1 tokens count; fewer are allowed.
  double probability(std::span<const int32_t> context, int32_t w) const;

  // Mean of -ln p over all tokens of a corpus, document by document. `skip`: that many tokens of
  // each document are context only. Runs on several threads.
  double cross_entropy(const Corpus& corpus, int64_t skip = 0) const;

  int order() const { return static_cast<int>(orders_.size()); }
  int64_t ngrams(int order) const { return static_cast<int64_t>(orders_[order - 1].count.size()); }

 private:
  __extension__ using Key = unsigned __int128;  // 16 bits a token, the oldest highest
  struct Order {
    std::vector<Key> key;         // sorted, unique
    std::vector<uint32_t> count;  // like key
    double discount[4] = {0, 0, 0, 0};
  };
  // The n-grams of order n that begin with a context of n - 1 tokens: their place and sums.
  struct Context {
    size_t begin = 0, end = 0;
    double total = 0, reserved = 0;  // of counts, of discounts
  };
  Context find(int n, Key prefix) const;

  Context empty_;                // of order 1
  std::vector<Context> single_;  // of order 2, by token
  std::vector<Order> orders_;    // [n - 1]: n-grams
  int64_t vocab_;
  int32_t boundary_;
};

}  // namespace heed::data
