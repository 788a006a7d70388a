#include "data/kneser_ney.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "io/error.h"

namespace heed::data {
namespace {

// Sorts halves on several threads and merges them.
template <typename It>
void parallel_sort(It begin, It end, unsigned threads) {
  if (threads < 2 || end - begin < 1 << 16) {
    std::sort(begin, end);
    return;
  }
  const It middle = begin + (end - begin) / 2;
  std::thread left([=] { parallel_sort(begin, middle, threads / 2); });
  parallel_sort(middle, end, threads - threads / 2);
  left.join();
  std::inplace_merge(begin, middle, end);
}

}  // namespace

KneserNey::KneserNey(const Corpus& corpus, int order, int64_t vocab, int32_t boundary,
                     Progress& progress)
    : vocab_(vocab), boundary_(boundary) {
  if (order < 1 || order > kMaxOrder) {
    throw UsageError("n-grams have orders 1 to {}, not {}", kMaxOrder, order);
  }
  if (vocab < 1 || vocab > 65536 || boundary < 0 || boundary >= vocab) {
    throw UsageError("n-grams need a vocabulary of at most 65536 tokens with an end-of-text token");
  }
  progress.begin("counting n-grams", order);
  orders_.resize(static_cast<size_t>(order));
  const Key mask = order == 8 ? ~Key{0} : (Key{1} << (16 * order)) - 1;
  std::vector<Key> keys;
  keys.reserve(static_cast<size_t>(corpus.tokens()));
  for (int64_t d = 0; d < corpus.documents(); ++d) {
    Key key = 0;
    for (int n = 1; n < order; ++n) key = (key << 16) | static_cast<uint16_t>(boundary);
    for (const int32_t id : corpus.slice(d, 0, corpus.length(d))) {
      key = ((key << 16) | static_cast<uint16_t>(id)) & mask;
      keys.push_back(key);
    }
  }
  for (int n = order; n >= 1; --n) {
    check_interrupted();
    parallel_sort(keys.begin(), keys.end(), std::max(1u, std::thread::hardware_concurrency()));
    Order& grams = orders_[static_cast<size_t>(n - 1)];
    int64_t counts[5] = {};
    size_t unique = 0;
    for (size_t i = 0; i < keys.size();) {
      size_t j = i;
      while (j < keys.size() && keys[j] == keys[i]) ++j;
      keys[unique++] = keys[i];
      grams.count.push_back(static_cast<uint32_t>(j - i));
      if (j - i <= 4) ++counts[j - i];
      i = j;
    }
    keys.resize(unique);
    grams.key.assign(keys.begin(), keys.end());
    // With too little text a count of counts is 0; then the discount of absolute discounting.
    const double n1 = static_cast<double>(counts[1]);
    const double y = n1 > 0 ? n1 / (n1 + 2.0 * static_cast<double>(counts[2])) : 0.5;
    for (int c = 1; c <= 3; ++c) {
      const double here = static_cast<double>(counts[c]), next = static_cast<double>(counts[c + 1]);
      const double d = here > 0 ? c - (c + 1) * y * next / here : y;
      grams.discount[c] = std::clamp(d, 0.0, static_cast<double>(c));
    }
    // What follows the first token of every different n-gram is counted once at the order below.
    const Key tail = n > 1 ? (Key{1} << (16 * (n - 1))) - 1 : 0;
    for (Key& key : keys) key &= tail;
    progress.step(order - n + 1);
  }
  empty_ = find(1, 0);
  if (order > 1) {
    for (int64_t id = 0; id < vocab_; ++id) single_.push_back(find(2, static_cast<Key>(id)));
  }
  progress.end();
}

KneserNey::Context KneserNey::find(int n, Key prefix) const {
  const Order& grams = orders_[static_cast<size_t>(n - 1)];
  const Key low = prefix << 16;
  const auto first = grams.key.begin();
  const auto begin = std::lower_bound(first, grams.key.end(), low);
  const auto end = std::upper_bound(begin, grams.key.end(), low | 0xffff);
  Context context;
  context.begin = static_cast<size_t>(begin - first);
  context.end = static_cast<size_t>(end - first);
  for (size_t i = context.begin; i < context.end; ++i) {
    context.total += grams.count[i];
    context.reserved += grams.discount[std::min<uint32_t>(grams.count[i], 3)];
  }
  return context;
}

double KneserNey::probability(std::span<const int32_t> context, int32_t w) const {
  const int most = static_cast<int>(std::min<size_t>(orders_.size() - 1, context.size()));
  double p = 1.0 / static_cast<double>(vocab_);
  Key prefix = 0;  // the last n - 1 tokens of the context
  for (int n = 1; n <= most + 1; ++n) {
    if (n > 1) {
      const auto oldest =
          static_cast<uint16_t>(context[context.size() - static_cast<size_t>(n - 1)]);
      prefix |= Key{oldest} << (16 * (n - 2));
    }
    // The contexts of no token and of one are long lists: summed once.
    const Context at = n == 1   ? empty_
                       : n == 2 ? single_[static_cast<size_t>(prefix)]
                                : find(n, prefix);
    if (at.begin == at.end) break;  // an unseen context: the orders above have not seen it either
    const Order& grams = orders_[static_cast<size_t>(n - 1)];
    const auto begin = grams.key.begin() + static_cast<int64_t>(at.begin);
    const auto end = grams.key.begin() + static_cast<int64_t>(at.end);
    const Key wanted = (prefix << 16) | static_cast<uint16_t>(w);
    const auto found = std::lower_bound(begin, end, wanted);
    double own = 0;
    if (found != end && *found == wanted) {
      const uint32_t count = grams.count[static_cast<size_t>(found - grams.key.begin())];
      own = count - grams.discount[std::min<uint32_t>(count, 3)];
    }
    p = (own + at.reserved * p) / at.total;
  }
  return p;
}

double KneserNey::cross_entropy(const Corpus& corpus, int64_t skip) const {
  const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<double> sums(threads, 0);
  std::vector<int64_t> counts(threads, 0);
  auto work = [&](size_t thread) {
    for (int64_t d = 0; d < corpus.documents(); ++d) {
      auto tokens = corpus.slice(d, 0, corpus.length(d));
      tokens.insert(tokens.begin(), orders_.size() - 1, boundary_);
      const auto lead = static_cast<int64_t>(orders_.size() - 1);
      for (int64_t n = skip + static_cast<int64_t>(thread); n < corpus.length(d);
           n += static_cast<int64_t>(threads)) {
        const std::span<const int32_t> all(tokens);
        sums[thread] -= std::log(probability(all.first(static_cast<size_t>(n + lead)),
                                             all[static_cast<size_t>(n + lead)]));
        ++counts[thread];
      }
    }
  };
  std::vector<std::thread> pool;
  for (size_t n = 1; n < threads; ++n) pool.emplace_back(work, n);
  work(0);
  for (auto& thread : pool) thread.join();
  double sum = 0;
  int64_t count = 0;
  for (size_t n = 0; n < threads; ++n) {
    sum += sums[n];
    count += counts[n];
  }
  if (count == 0) throw UsageError("no token is left to measure");
  return sum / static_cast<double>(count);
}

}  // namespace heed::data
