// The inner losses of the engine `learn`, each a struct of two functions over one row: the gradient
// of the loss by the memory's answer z, and that gradient's own backward pass. A new rule is one
// more struct here and one more flag of LearnOptions.
#include <cmath>
#include <cstdint>

#include "kernel/learn/learn.h"

#if defined(HEED_LEARN_RULE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_LEARN_RULE_INL_H_
#undef HEED_LEARN_RULE_INL_H_
#else
#define HEED_LEARN_RULE_INL_H_
#endif

#include "kernel/simd/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

// What a rule knows of its head. Rows have n entries and zeros up to a multiple of 16.
struct RuleContext {
  int64_t n, padded;
  const float *weight, *bias;  // of the norm
  double eps;
};

// The gradients that a rule hands back for one row.
struct RuleGrads {
  float *z, *target;
  float *weight, *bias;  // of the norm; added to
};

struct SquareRule {
  static void gradient(const RuleContext& c, const float* z, const float* target, float* dz) {
    for (int64_t i = 0; i < c.padded; ++i) dz[i] = 2 * (z[i] - target[i]);
  }
  static void backward(const RuleContext& c, const float* /*z*/, const float* /*target*/,
                       const float* u, const RuleGrads& grads) {
    for (int64_t i = 0; i < c.padded; ++i) {
      grads.z[i] = 2 * u[i];
      grads.target[i] = -2 * u[i];
    }
  }
};

// term(0) + .. + term(n - 1) in double precision, eight sums side by side: one would wait for
// itself at every term.
template <class Term>
HWY_INLINE double sum_of(int64_t n, Term&& term) {
  double parts[8] = {}, sum = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) parts[j] += term(i + j);
  }
  for (; i < n; ++i) sum += term(i);
  for (const double part : parts) sum += part;
  return sum;
}

struct NormRule {
  // x = (z - mean) / sqrt(var + eps).
  struct Moments {
    double mean, inverse;
  };
  static Moments moments(const RuleContext& c, const float* z) {
    const auto n = static_cast<double>(c.n);
    const double mean = sum_of(c.n, [z](int64_t i) HWY_ATTR { return double{z[i]}; }) / n;
    const double squares =
        sum_of(c.n, [z, mean](int64_t i) HWY_ATTR { return (z[i] - mean) * (z[i] - mean); });
    return {mean, 1 / std::sqrt(squares / n + c.eps)};
  }

  static void gradient(const RuleContext& c, const float* z, const float* target, float* dz) {
    const Moments m = moments(c, z);
    const auto mean = static_cast<float>(m.mean), inverse = static_cast<float>(m.inverse);
    for (int64_t i = 0; i < c.n; ++i) {
      const float x = (z[i] - mean) * inverse;
      dz[i] = (c.weight[i] * x + c.bias[i] - target[i]) * c.weight[i];
    }
    const double sum = sum_of(c.n, [dz](int64_t i) HWY_ATTR { return double{dz[i]}; });
    const double along =
        sum_of(c.n, [=](int64_t i) HWY_ATTR { return double{dz[i]} * ((z[i] - mean) * inverse); });
    const double n = static_cast<double>(c.n);
    const auto first = static_cast<float>(sum / n), second = static_cast<float>(along / n);
    for (int64_t i = 0; i < c.n; ++i) {
      dz[i] = inverse * (dz[i] - first - (z[i] - mean) * inverse * second);
    }
  }

  // With dz = s P u, s the inverse deviation and P the (symmetric) projection off 1 and x:
  // the adjoint of u is s P a, those of x and s follow from P's own entries, and x's goes back to z
  // through the norm.
  static void backward(const RuleContext& c, const float* z, const float* target, const float* a,
                       const RuleGrads& grads) {
    const Moments m = moments(c, z);
    const double s = m.inverse, n = static_cast<double>(c.n);
    double u_sum = 0, u_x = 0, a_sum = 0, a_x = 0, a_u = 0;
    for (int64_t i = 0; i < c.n; ++i) {
      const double x = (z[i] - m.mean) * s;
      const double u = (c.weight[i] * x + c.bias[i] - target[i]) * c.weight[i];
      u_sum += u;
      u_x += u * x;
      a_sum += a[i];
      a_x += a[i] * x;
      a_u += a[i] * u;
    }
    const double by_s = a_u - a_sum * u_sum / n - a_x * u_x / n;  // a . P u
    double x_sum = 0, x_x = 0;
    const auto adjoint_x = [&](int64_t i, double x) {
      const double w = c.weight[i], error = w * x + c.bias[i] - target[i];
      const double by_u = s * (a[i] - a_sum / n - x * a_x / n);
      return -s * (a[i] * u_x + error * w * a_x) / n + by_u * w * w;
    };
    for (int64_t i = 0; i < c.n; ++i) {
      const double x = (z[i] - m.mean) * s, w = c.weight[i];
      const double by_u = s * (a[i] - a_sum / n - x * a_x / n);
      grads.target[i] = static_cast<float>(-by_u * w);
      grads.weight[i] += static_cast<float>(by_u * (2 * w * x + c.bias[i] - target[i]));
      grads.bias[i] += static_cast<float>(by_u * w);
      const double by_x = adjoint_x(i, x);
      x_sum += by_x;
      x_x += by_x * x;
    }
    for (int64_t i = 0; i < c.n; ++i) {
      const double x = (z[i] - m.mean) * s;
      const double through_norm = s * (adjoint_x(i, x) - x_sum / n - x * x_x / n);
      grads.z[i] = static_cast<float>(through_norm - by_s * s * s * x / n);
    }
  }
};

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HEED_LEARN_RULE_INL_H_
