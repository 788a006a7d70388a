// Rare ways from a logit to a weight, which are worth no struct of vector code: functions over a
// run of logits, called through a pointer on a tile in scratch. The weight `generic` of
// variants.inc.
//
//   softplus  ln(1 + e^x)        relu  max(x, 0)^power
//
// Softplus and ReLU in place of softmax: arXiv 2309.08586 (ReLU attention in vision transformers).
#pragma once

#include <cstdint>

namespace heed::kernel {

struct GenericWeight {
  const char* name;
  // weight[i] of the logits x[0..n-1] and, if slope is not NULL, its derivative; -inf gives 0 and
  // 0.
  void (*tile)(const float* x, int64_t n, double power, float* weight, float* slope);
  // The same of one logit in double precision.
  double (*one)(double x, double power, double* slope);
};

inline constexpr int64_t kGenericWeights = 2;
inline constexpr const char* kGenericNames[kGenericWeights] = {"softplus", "relu"};
extern const GenericWeight kGeneric[kGenericWeights];  // in the order of the names

}  // namespace heed::kernel
