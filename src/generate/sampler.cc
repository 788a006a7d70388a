// See sampler.h.
#include "generate/sampler.h"

#include <ATen/ATen.h>

#include "io/error.h"

namespace heed {

void check_sampling(const SamplingOptions& o) {
  if (!(o.temperature >= 0) || !std::isfinite(o.temperature)) {
    throw UsageError("temperature is {}, 0 or more was expected", o.temperature);
  }
  if (o.top_k < 0) throw UsageError("top-k is {}, 0 (off) or more was expected", o.top_k);
  if (!(o.top_p > 0 && o.top_p <= 1))
    throw UsageError("top-p is {}, 0 < p <= 1 was expected", o.top_p);
  if (!(o.min_p >= 0 && o.min_p < 1))
    throw UsageError("min-p is {}, 0 <= p < 1 was expected", o.min_p);
  if (!(o.repetition_penalty > 0)) {
    throw UsageError("repetition penalty is {}, more than 0 was expected", o.repetition_penalty);
  }
}

void check_scores(std::span<const float> scores) {
  // -inf hides a token; a NaN, an infinity or nothing but hidden tokens leaves no choice.
  float largest = -INFINITY;
  bool number = true;
  for (const float s : scores) {
    number &= s == s;
    largest = s > largest ? s : largest;
  }
  if (number && std::isfinite(largest)) return;
  size_t at = 0;
  while (at < scores.size() && scores[at] == scores[at] && scores[at] != INFINITY) ++at;
  throw Error(
      "the scores of the next token are not numbers ({}); the model's weights are damaged, or the "
      "dtype cannot run it: try --dtype float32",
      at < scores.size() ? fmt::format("token {} has {}", at, scores[at])
                         : fmt::format("all {} are -inf", scores.size()));
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
  check_sampling(options);
}

int64_t Sampler::next(const at::Tensor& given, std::span<const int64_t> seen) {
  const at::Tensor scores = given.to(at::kCPU, at::kFloat).contiguous();
  const float* raw = scores.const_data_ptr<float>();
  const auto size = static_cast<size_t>(scores.numel());
  check_scores({raw, size});
  std::vector<float> x(raw, raw + size);
  if (options_.repetition_penalty != 1) {
    const auto r = static_cast<float>(options_.repetition_penalty);
    std::vector<bool> done(size, false);
    for (int64_t id : seen) {
      if (id < 0 || static_cast<size_t>(id) >= size || done[id]) continue;
      done[id] = true;
      x[id] = x[id] > 0 ? x[id] / r : x[id] * r;
    }
  }
  const auto best = std::max_element(x.begin(), x.end());
  if (options_.temperature == 0) return best - x.begin();

  // Candidates by falling score (ties by id); only as many as top-k leaves need to be in order.
  std::vector<int64_t> order(size);
  for (size_t i = 0; i < size; ++i) order[i] = static_cast<int64_t>(i);
  const auto before = [&](int64_t a, int64_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; };
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < size) {
    std::partial_sort(order.begin(), order.begin() + options_.top_k, order.end(), before);
    order.resize(static_cast<size_t>(options_.top_k));
  } else {
    std::sort(order.begin(), order.end(), before);
  }
  std::vector<double> weight(order.size());
  double total = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    weight[i] = std::exp((static_cast<double>(x[order[i]]) - *best) / options_.temperature);
    total += weight[i];
  }
  // The fewest tokens whose probabilities reach top-p; at least one.
  size_t kept = order.size();
  if (options_.top_p < 1) {
    double sum = 0;
    for (kept = 0; kept < order.size() && sum < options_.top_p * total; ++kept) sum += weight[kept];
  }
  if (options_.min_p > 0) {
    while (kept > 1 && weight[kept - 1] < options_.min_p * weight[0]) --kept;
  }
  total = 0;
  for (size_t i = 0; i < kept; ++i) total += weight[i];
  double point = static_cast<double>(random_() >> 11) * 0x1.0p-53 * total;
  for (size_t i = 0; i < kept; ++i) {
    point -= weight[i];
    if (point < 0) return order[i];
  }
  return order[kept - 1];
}

}  // namespace heed
