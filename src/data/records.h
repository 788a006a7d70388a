// The one file in which runs, benchmarks and searches are recorded (SQLite, WAL, schema version),
// so that results can be listed, compared and resumed. Several processes may have it open.
//
//   runs     one row a piece of work: kind ("train", "eval", "bench", "plan", ...), name, folder,
//            configuration (JSON), when, how it ended, summary (JSON)
//   metrics  numbers of a run by step: (run, step, name, value)
//   results  values that later work reuses, by (scope, key): a search keeps what it found out about
//            head 3.2 of a model under scope = hash of model and data, key = "3.2/window/256"
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

struct sqlite3;

namespace heed::data {

struct RunRecord {
  int64_t id = 0;
  std::string kind, name, folder;
  std::string config;    // JSON
  std::string started;   // UTC, 2026-01-31T23:59:59Z
  std::string finished;  // empty while it runs
  std::string status;    // running | done | interrupted | failed
  std::string summary;   // JSON
};

struct MetricRecord {
  int64_t step = 0;
  double value = 0;
};

class Records {
 public:
  // Opens or makes the file (and the folders above it). Throws Error if it is no such file or was
  // written by a newer schema.
  explicit Records(const std::string& path);
  ~Records();
  Records(const Records&) = delete;
  Records& operator=(const Records&) = delete;

  int64_t begin_run(const std::string& kind, const std::string& name, const std::string& folder,
                    const std::string& config_json);
  // Marks a run as running again (resumed) and drops its metrics from step `after` + 1 on.
  void resume_run(int64_t run, int64_t after);
  void finish_run(int64_t run, const std::string& status, const std::string& summary_json = "{}");
  // Newest first; an empty kind lists all.
  std::vector<RunRecord> runs(const std::string& kind = "") const;
  // The newest run with this folder.
  std::optional<RunRecord> find_run(const std::string& folder) const;

  // Several numbers of one step, in one transaction; a number written again is replaced.
  void add_metrics(int64_t run, int64_t step,
                   std::span<const std::pair<std::string, double>> values);
  std::vector<MetricRecord> metrics(int64_t run, const std::string& name) const;

  void put_result(const std::string& scope, const std::string& key, const std::string& json);
  std::optional<std::string> get_result(const std::string& scope, const std::string& key) const;
  std::vector<std::pair<std::string, std::string>> results(const std::string& scope) const;

  const std::string& path() const { return path_; }

 private:
  class Statement;
  void execute(const char* sql);
  std::string path_;
  sqlite3* db_ = nullptr;
};

// Where records lie when nobody says otherwise: $HEED_RECORDS, else runs/records.sqlite in the
// current folder.
std::string default_records_path();

}  // namespace heed::data
