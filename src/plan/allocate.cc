#include "plan/allocate.h"

#include <glpk.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "io/error.h"

namespace heed::plan {
namespace {

struct Problem {
  glp_prob* p = glp_create_prob();
  Problem() = default;
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;
  ~Problem() { glp_delete_prob(p); }
};

}  // namespace

std::vector<int> allocate(const std::vector<std::vector<Option>>& options,
                          const std::vector<int64_t>& budgets) {
  const int heads = static_cast<int>(options.size());
  const int lengths = static_cast<int>(budgets.size());
  double largest = 0;
  for (int n = 0; n < lengths; ++n) {
    int64_t least = 0;
    for (const auto& head : options) {
      int64_t smallest = INT64_MAX;
      for (const auto& option : head) smallest = std::min(smallest, option.tokens.at(n));
      least += smallest;
    }
    if (least > budgets[n]) {
      throw UsageError(
          "the budget of {} cached positions is below the {} that the smallest programs of all {} "
          "heads need; raise --budget or allow smaller windows",
          budgets[n], least, heads);
    }
  }
  for (const auto& head : options) {
    for (const auto& option : head) {
      if (!std::isfinite(option.loss)) throw Error("a head's score is not finite; check the model");
      largest = std::max(largest, std::abs(option.loss));
    }
  }
  // The solver's tolerances are absolute: bring the losses to the order of 1000.
  const double scale = largest > 0 ? 1000.0 / largest : 1.0;

  glp_term_out(GLP_OFF);
  Problem problem;
  glp_prob* lp = problem.p;
  glp_set_obj_dir(lp, GLP_MIN);
  glp_add_rows(lp, heads + lengths);
  for (int h = 0; h < heads; ++h) glp_set_row_bnds(lp, h + 1, GLP_FX, 1.0, 1.0);
  for (int n = 0; n < lengths; ++n) {
    glp_set_row_bnds(lp, heads + n + 1, GLP_UP, 0.0, static_cast<double>(budgets[n]));
  }
  std::vector<int> first(heads);
  for (int h = 0; h < heads; ++h) {
    const int count = static_cast<int>(options[h].size());
    first[h] = glp_add_cols(lp, count);
    for (int p = 0; p < count; ++p) {
      const int column = first[h] + p;
      glp_set_col_kind(lp, column, GLP_BV);
      glp_set_obj_coef(lp, column, options[h][p].loss * scale);
      std::vector<int> rows{0, h + 1};  // GLPK counts from 1
      std::vector<double> values{0, 1.0};
      for (int n = 0; n < lengths; ++n) {
        rows.push_back(heads + n + 1);
        values.push_back(static_cast<double>(options[h][p].tokens[n]));
      }
      glp_set_mat_col(lp, column, static_cast<int>(rows.size()) - 1, rows.data(), values.data());
    }
  }
  glp_iocp parameters;
  glp_init_iocp(&parameters);
  parameters.presolve = GLP_ON;
  parameters.mip_gap = 1e-4;
  parameters.tm_lim = 20'000;  // ms
  parameters.msg_lev = GLP_MSG_OFF;
  glp_intopt(lp, &parameters);
  const int status = glp_mip_status(lp);
  if (status != GLP_OPT && status != GLP_FEAS) {
    throw Error("the integer program of {} heads found no allocation in 20 s", heads);
  }
  std::vector<int> chosen(heads, 0);
  for (int h = 0; h < heads; ++h) {
    for (int p = 0; p < static_cast<int>(options[h].size()); ++p) {
      if (glp_mip_col_val(lp, first[h] + p) > 0.5) chosen[h] = p;
    }
  }
  return chosen;
}

}  // namespace heed::plan
