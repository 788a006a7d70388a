#include "kernel/attend/generic.h"

#include <algorithm>
#include <cmath>

namespace heed::kernel {
namespace {

void softplus_tile(const float* x, int64_t n, double, float* weight, float* slope) {
  for (int64_t i = 0; i < n; ++i) {
    const float e = std::exp(-std::abs(x[i]));  // at most 1, 0 for -inf
    weight[i] = std::max(x[i], 0.0f) + std::log1p(e);
    if (slope != nullptr) slope[i] = (x[i] >= 0 ? 1.0f : e) / (1 + e);
  }
}
double softplus(double x, double, double* slope) {
  const double e = std::exp(-std::abs(x));
  *slope = (x >= 0 ? 1.0 : e) / (1 + e);
  return std::max(x, 0.0) + std::log1p(e);
}

void relu_tile(const float* x, int64_t n, double power, float* weight, float* slope) {
  const auto p = static_cast<float>(power);
  for (int64_t i = 0; i < n; ++i) {
    const float positive = std::max(x[i], 0.0f);
    const bool open = positive > 0;
    const float root = !open ? 0.0f : p == 1 ? 1.0f : p == 2 ? positive : std::pow(positive, p - 1);
    weight[i] = root * positive;
    if (slope != nullptr) slope[i] = p * root;
  }
}
double relu(double x, double power, double* slope) {
  *slope = x > 0 ? power * std::pow(x, power - 1) : 0;
  return x > 0 ? std::pow(x, power) : 0;
}

}  // namespace

const GenericWeight kGeneric[kGenericWeights] = {{kGenericNames[0], softplus_tile, softplus},
                                                 {kGenericNames[1], relu_tile, relu}};

}  // namespace heed::kernel
