// Random numbers whose sequence is the same on every machine and compiler (the distributions of the
// standard library are not). SplitMix64: Steele, Lea & Flood, "Fast splittable pseudorandom number
// generators", OOPSLA 2014; bounded integers: Lemire, arXiv 1805.10941.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace heed::data {

class Random {
 public:
  // Two seeds, so that each row, document or worker can have a stream of its own.
  explicit Random(uint64_t seed, uint64_t stream = 0) : state_(mix(seed) ^ mix(~stream)) {}

  uint64_t next() { return mix(state_ += 0x9e3779b97f4a7c15ull); }

  // In [0, n); n > 0.
  uint64_t below(uint64_t n) {
    __extension__ using Wide = unsigned __int128;
    Wide product = Wide{next()} * n;
    if (static_cast<uint64_t>(product) < n) {
      const uint64_t threshold = -n % n;
      while (static_cast<uint64_t>(product) < threshold) product = Wide{next()} * n;
    }
    return static_cast<uint64_t>(product >> 64);
  }
  // In [low, high], both included.
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(below(static_cast<uint64_t>(high - low) + 1));
  }
  // In [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  template <typename T>
  void shuffle(std::vector<T>& items) {
    for (size_t n = items.size(); n > 1; --n) std::swap(items[n - 1], items[below(n)]);
  }
  template <typename T>
  const T& pick(std::span<const T> items) {
    return items[below(items.size())];
  }

 private:
  static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

}  // namespace heed::data
