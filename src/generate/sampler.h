// The choice of the next token from the model's scores.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace heed {

// Applied in this order: repetition penalty (CTRL, arXiv 1909.05858: a score s of an id that
// occurred becomes s / r if positive, s r otherwise), temperature, top-k, top-p (nucleus, arXiv
// 1904.09751), min-p (arXiv 2407.01082). Temperature 0 takes the likeliest token, the lowest id on
// a tie.
struct SamplingOptions {
  double temperature = 0;
  int64_t top_k = 0;              // 0: off
  double top_p = 1;               // 1: off
  double min_p = 0;               // 0: off
  double repetition_penalty = 1;  // 1: off
  uint64_t seed = 0;
};

// Throws UsageError naming an option that is out of range.
void check_sampling(const SamplingOptions& options);

// Throws Error unless scores [V] are numbers to choose by: none NaN or +inf, not all -inf.
void check_scores(std::span<const float> scores);

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  // scores: [V] of any floating type; `seen`: ids of prompt and text so far. Throws Error as
  // check_scores() does.
  int64_t next(const at::Tensor& scores, std::span<const int64_t> seen);

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
};

}  // namespace heed
