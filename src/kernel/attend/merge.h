// The merge rule of softmax attention. A part of the keys is summed up by (m, l, o):
//
//   m = max_j x_j,   l = sum_j e^(x_j - m),   o = sum_j e^(x_j - m) v_j
//
// and two parts merge into m = max(m_a, m_b), l = e^(m_a - m) l_a + e^(m_b - m) l_b, o likewise.
// The rule is associative and commutative up to rounding, and the part without keys (-inf, 0, 0)
// changes nothing. Online softmax (arXiv 1805.02867) is this rule applied tile by tile; split-KV
// decoding (Flash-Decoding) applies it to the results of workers.
//
// Everything here is in base 2: m = max_j x_j log2(e), and the exponentials are 2^(...), because
// that is what the vector kernels compute. lse() and from_lse() convert.
#pragma once

#include <cmath>
#include <limits>

namespace heed::kernel {

template <class T>
struct SoftmaxPart {
  static constexpr T kEmpty = -std::numeric_limits<T>::infinity();

  T max = kEmpty;  // base 2
  T sum = 0;

  struct Factors {
    T mine, theirs;  // what o of this part, and o of the other, are multiplied by
  };

  // Merges the other part into this one.
  Factors merge(const SoftmaxPart& other) {
    const T both = max > other.max ? max : other.max;
    const Factors factors{weight(max, both), weight(other.max, both)};
    sum = sum * factors.mine + other.sum * factors.theirs;
    max = both;
    return factors;
  }

  // 2^(part - whole), 0 for an empty part (also where the whole is empty: no -inf - -inf).
  static T weight(T part, T whole) { return part == kEmpty ? T(0) : std::exp2(part - whole); }

  // 1/l, and 0 where no key was seen (no 0/0): then out = o * inverse() = 0.
  T inverse() const { return sum > 0 || sum != sum ? T(1) / sum : T(0); }

  // ln sum_j e^(x_j); -inf where no key was seen. In double: the result of a sum of two logarithms
  // in float would lose half a unit twice.
  double lse() const {
    constexpr double kLn2 = 0.693147180559945309417;
    if (sum == 0) return -std::numeric_limits<double>::infinity();
    return (static_cast<double>(max) + std::log2(static_cast<double>(sum))) * kLn2;
  }

  // The part whose o is a normalised output with this logsumexp.
  static SoftmaxPart from_lse(double lse) {
    constexpr double kLog2E = 1.44269504088896340736;
    if (lse == -std::numeric_limits<double>::infinity()) return {};
    return {static_cast<T>(lse * kLog2E), T(1)};
  }
};

// Merges (b_part, b) into (a_part, a): o vectors of n numbers.
template <class T>
void merge_into(SoftmaxPart<T>& a_part, T* a, const SoftmaxPart<T>& b_part, const T* b, int n) {
  const auto factors = a_part.merge(b_part);
  if (factors.theirs == 0) return;  // an empty part's o may be uninitialised
  if (factors.mine == 0) {
    for (int d = 0; d < n; ++d) a[d] = b[d] * factors.theirs;
    return;
  }
  for (int d = 0; d < n; ++d) a[d] = a[d] * factors.mine + b[d] * factors.theirs;
}

}  // namespace heed::kernel
