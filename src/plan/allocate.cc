#include "plan/allocate.h"

#include <coin/Cbc_C_Interface.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <memory>

#include "io/error.h"

namespace heed::plan {
namespace {

using Options = std::vector<std::vector<Option>>;

// Throws where even the smallest options exceed a budget.
void check_budgets(const Options& options, const std::vector<int64_t>& budgets) {
  for (size_t n = 0; n < budgets.size(); ++n) {
    int64_t least = 0;
    for (const auto& head : options) {
      int64_t smallest = INT64_MAX;
      for (const auto& option : head) smallest = std::min(smallest, option.bytes.at(n));
      least += smallest;
    }
    if (least > budgets[n]) {
      throw UsageError(
          "the budget of {} bytes is below the {} that the smallest programs of all {} "
          "heads need; raise --budget or allow smaller windows",
          budgets[n], least, options.size());
    }
  }
}

// The solver's tolerances are absolute: what brings the losses to the order of 1000.
double loss_scale(const Options& options) {
  double largest = 0;
  for (const auto& head : options) {
    for (const auto& option : head) {
      if (!std::isfinite(option.loss)) throw Error("a head's score is not finite; check the model");
      largest = std::max(largest, std::abs(option.loss));
    }
  }
  return largest > 0 ? 1000.0 / largest : 1.0;
}

// The problem by columns, as the solver takes it: a column for each option of each head; first a
// row for each head, of which one option is taken, then a row for each length.
struct Columns {
  std::vector<int> start{0}, row;
  std::vector<double> value, cost, upper, least, most;
};

Columns columns_of(const Options& options, const std::vector<int64_t>& budgets) {
  Columns out;
  const double scale = loss_scale(options);
  const size_t heads = options.size();
  for (size_t h = 0; h < heads; ++h) {
    for (const Option& option : options[h]) {
      out.row.push_back(static_cast<int>(h));
      out.value.push_back(1);
      for (size_t n = 0; n < budgets.size(); ++n) {
        out.row.push_back(static_cast<int>(heads + n));
        out.value.push_back(static_cast<double>(option.bytes.at(n)));
      }
      out.start.push_back(static_cast<int>(out.row.size()));
      out.cost.push_back(option.loss * scale);
    }
  }
  out.upper.assign(out.cost.size(), 1);
  out.least.assign(heads, 1);
  out.most.assign(heads, 1);
  for (const int64_t budget : budgets) {
    out.least.push_back(0);
    out.most.push_back(static_cast<double>(budget));
  }
  return out;
}

// Sets the values of all columns; false if the solver found none.
bool solve(const Columns& c, std::vector<double>& values) {
  const auto free = [](Cbc_Model* model) { Cbc_deleteModel(model); };
  const std::unique_ptr<Cbc_Model, decltype(free)> model(Cbc_newModel(), free);
  const auto count = static_cast<int>(c.cost.size());
  Cbc_setLogLevel(model.get(), 0);
  Cbc_loadProblem(model.get(), count, static_cast<int>(c.most.size()), c.start.data(), c.row.data(),
                  c.value.data(), nullptr, c.upper.data(), c.cost.data(), c.least.data(),
                  c.most.data());
  for (int i = 0; i < count; ++i) Cbc_setInteger(model.get(), i);
  Cbc_setParameter(model.get(), "ratioGap", "1e-3");
  Cbc_setParameter(model.get(), "timeMode", "elapsed");
  Cbc_setParameter(model.get(), "seconds", "5");
  struct sigaction interrupt {};  // the solver sets a handler of its own
  ::sigaction(SIGINT, nullptr, &interrupt);
  Cbc_solve(model.get());
  ::sigaction(SIGINT, &interrupt, nullptr);
  const double* best = Cbc_numberSavedSolutions(model.get()) > 0 || Cbc_isProvenOptimal(model.get())
                           ? Cbc_bestSolution(model.get())
                           : nullptr;
  if (best == nullptr) return false;
  std::copy_n(best, values.size(), values.begin());
  return true;
}

}  // namespace

std::vector<int> allocate(const Options& options, const std::vector<int64_t>& budgets) {
  check_budgets(options, budgets);
  Columns columns = columns_of(options, budgets);
  // The solver's whole numbers are whole up to a tolerance: what that leaves above a budget is
  // taken off it for another try.
  constexpr int kTries = 3;
  std::vector<double> values(columns.cost.size());
  for (int attempt = 0; attempt < kTries; ++attempt) {
    if (!solve(columns, values)) break;
    std::vector<int> chosen(options.size(), 0);
    std::vector<int64_t> over(budgets.size(), 0);
    for (size_t h = 0, column = 0; h < options.size(); column += options[h++].size()) {
      const auto begin = values.begin() + static_cast<int64_t>(column);
      const auto end = begin + static_cast<int64_t>(options[h].size());
      chosen[h] = static_cast<int>(std::max_element(begin, end) - begin);
      for (size_t n = 0; n < budgets.size(); ++n) over[n] += options[h][chosen[h]].bytes[n];
    }
    bool fits = true;
    for (size_t n = 0; n < budgets.size(); ++n) {
      const int64_t excess = over[n] - budgets[n];
      if (excess <= 0) continue;
      fits = false;
      columns.most[options.size() + n] -= static_cast<double>(excess);
    }
    if (fits) return chosen;
  }
  throw Error("the integer program of {} heads found no allocation in 5 s", options.size());
}

std::vector<int> lower_hull(const std::vector<Option>& options) {
  std::vector<int> order(options.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  const auto bytes = [&](int i) { return static_cast<double>(options[i].bytes.back()); };
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    return bytes(a) != bytes(b) ? bytes(a) < bytes(b) : options[a].loss < options[b].loss;
  });
  std::vector<int> hull;
  for (const int i : order) {
    if (!hull.empty() && options[i].loss >= options[hull.back()].loss)
      continue;  // dearer, no better
    while (hull.size() > 1) {
      const int a = hull[hull.size() - 2], b = hull.back();
      const double by_b = (options[a].loss - options[b].loss) * (bytes(i) - bytes(a));
      const double by_i = (options[a].loss - options[i].loss) * (bytes(b) - bytes(a));
      if (by_b > by_i) break;  // b lies below the line from a to i
      hull.pop_back();
    }
    hull.push_back(i);
  }
  return hull;
}

}  // namespace heed::plan
