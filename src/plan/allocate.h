// Divides a cache budget over the KV heads of a model: the multiple-choice knapsack
//
//   min  sum_h loss[h, p_h]   s.t.  sum_h bytes[h, p_h, N] <= budget[N] for every length N
//
// as an integer program with one option p_h per head (MoA, arXiv 2406.14909, section 4; spec
// "Budgeted search that subsumes them"), solved by CBC.
#pragma once

#include <cstdint>
#include <vector>

namespace heed::plan {

// One program a head could run.
struct Option {
  double loss = 0;             // what choosing it costs, in any unit that adds over heads; finite
  std::vector<int64_t> bytes;  // of the cache, at each declared length
};

// options[h][p] -> the index p chosen for each head h. `budgets`: bytes allowed in all, at each
// length. Exact up to a relative gap of 1e-3. Throws UsageError if even the smallest options do not
// fit, naming the least budget that would; Error if the solver finds nothing in 5 s.
std::vector<int> allocate(const std::vector<std::vector<Option>>& options,
                          const std::vector<int64_t>& budgets);

// The options that a sum of loss and price can choose at some price of a byte: indices into
// `options`, by rising bytes at the last length. What they leave out is never much better, and a
// head of a few hundred options becomes one of a few dozen.
std::vector<int> lower_hull(const std::vector<Option>& options);

}  // namespace heed::plan
