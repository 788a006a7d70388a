// What an earlier run of the demo into the same folder measured: taken over where everything that
// it depends on is the same, its times among it, and marked as such.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "data/records.h"
#include "eval/workbench.h"
#include "io/json.h"
#include "plan/search.h"
#include "report/evaluation.h"

namespace heed::lab {

// All that the measurement of a setting depends on but the setting itself: program (version and
// SHA-256 of its file), PyTorch, machine, device, threads, model (hash, and name, size and time of
// its files), types, context, and the SHA-256 of texts, needles and questions.
Json measuring_key(const eval::Workbench& bench, const report::EvaluationData& data,
                   int64_t context, at::ScalarType kv_dtype);

// SHA-256 of what a search looks at.
std::string fingerprint(const plan::SearchData& data);

class Kept {
 public:
  // `key`: of measuring_key(); what was kept under another one is not seen.
  Kept(data::Records& records, const Json& key);

  // What this object has kept itself is not told: it is no earlier run's.

  // An evaluation, as to_json() writes it, with "measured" (when, UTC), and for the dense model
  // "needle_results". `programs` null: dense.
  std::optional<Json> evaluation(const Decoder& model, const Programs* programs) const;
  void keep_evaluation(const Decoder& model, const Programs* programs, const Json& row);

  // The plan of a search, named by `search`: what was asked of it.
  std::optional<Plan> plan(const std::string& search) const;
  void keep_plan(const std::string& search, const Plan& plan);

 private:
  std::optional<std::string> find(const std::string& name) const;
  void keep(const std::string& name, const Json& value);

  data::Records& records_;
  std::string scope_;
  std::set<std::string> own_;  // kept by this object
};

Json to_json(const std::vector<eval::NeedleResult>& needles);
std::vector<eval::NeedleResult> needles_from_json(const Json& json);

// "2026-01-31 12:00 UTC".
std::string now_utc();

}  // namespace heed::lab
