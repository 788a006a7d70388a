#include "data/records.h"

#include <sqlite3.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>

#include "io/atomic_file.h"
#include "io/error.h"

namespace heed::data {
namespace {

constexpr int kSchemaVersion = 1;
constexpr const char* kSchema = R"(
CREATE TABLE IF NOT EXISTS runs(
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, folder TEXT NOT NULL,
  config TEXT NOT NULL, started TEXT NOT NULL, finished TEXT NOT NULL DEFAULT '',
  status TEXT NOT NULL, summary TEXT NOT NULL DEFAULT '{}');
CREATE TABLE IF NOT EXISTS metrics(
  run INTEGER NOT NULL REFERENCES runs(id) ON DELETE CASCADE, step INTEGER NOT NULL,
  name TEXT NOT NULL, value REAL, PRIMARY KEY(run, name, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS results(
  scope TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, written TEXT NOT NULL,
  PRIMARY KEY(scope, key)) WITHOUT ROWID;
)";

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

// A prepared statement; values are bound in order.
class Records::Statement {
 public:
  Statement(const Records& records, const char* sql) : records_(records) {
    check(sqlite3_prepare_v2(records.db_, sql, -1, &statement_, nullptr));
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& bind(const std::string& text) {
    check(sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()),
                            SQLITE_TRANSIENT));
    return *this;
  }
  Statement& bind(int64_t value) {
    check(sqlite3_bind_int64(statement_, ++bound_, value));
    return *this;
  }
  Statement& bind(double value) {
    check(sqlite3_bind_double(statement_, ++bound_, value));
    return *this;
  }
  // True while there is a row.
  bool step() {
    const int code = sqlite3_step(statement_);
    if (code != SQLITE_ROW && code != SQLITE_DONE) check(code);
    return code == SQLITE_ROW;
  }
  void reset() {
    sqlite3_reset(statement_);
    bound_ = 0;
  }
  std::string text(int column) const {
    const auto* at = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    return at ? std::string(at, static_cast<size_t>(sqlite3_column_bytes(statement_, column))) : "";
  }
  int64_t integer(int column) const { return sqlite3_column_int64(statement_, column); }
  double real(int column) const { return sqlite3_column_double(statement_, column); }

 private:
  void check(int code) const {
    if (code != SQLITE_OK) {
      throw Error("records file {}: {}", records_.path_, sqlite3_errmsg(records_.db_));
    }
  }
  const Records& records_;
  sqlite3_stmt* statement_ = nullptr;
  int bound_ = 0;
};

Records::Records(const std::string& path) : path_(path) {
  const auto folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) make_folders(folder.string());
  if (sqlite3_open(path.c_str(), &db_) != SQLITE_OK) {
    const std::string why = db_ ? sqlite3_errmsg(db_) : "out of memory";
    sqlite3_close(db_);
    throw Error("records file {}: {}", path, why);
  }
  try {
    sqlite3_busy_timeout(db_, 10000);
    execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;");
    int64_t version;
    {
      Statement read(*this, "PRAGMA user_version");
      read.step();
      version = read.integer(0);
    }
    if (version > kSchemaVersion) {
      throw Error("records file {}: schema {} is newer than this program's {}; update Heed", path,
                  version, kSchemaVersion);
    }
    if (version < kSchemaVersion) {
      execute(fmt::format("BEGIN IMMEDIATE; {} PRAGMA user_version={}; COMMIT;", kSchema,
                          kSchemaVersion)
                  .c_str());
    }
  } catch (...) {
    sqlite3_close(db_);
    throw;
  }
}

Records::~Records() { sqlite3_close(db_); }

void Records::execute(const char* sql) {
  char* message = nullptr;
  if (sqlite3_exec(db_, sql, nullptr, nullptr, &message) != SQLITE_OK) {
    const std::string why = message ? message : "unknown error";
    sqlite3_free(message);
    throw Error("records file {}: {}", path_, why);
  }
}

int64_t Records::begin_run(const std::string& kind, const std::string& name,
                           const std::string& folder, const std::string& config_json) {
  Statement insert(*this,
                   "INSERT INTO runs(kind, name, folder, config, started, status) "
                   "VALUES(?, ?, ?, ?, ?, 'running')");
  insert.bind(kind).bind(name).bind(folder).bind(config_json).bind(now_utc()).step();
  return sqlite3_last_insert_rowid(db_);
}

void Records::resume_run(int64_t run, int64_t after) {
  Statement(*this, "UPDATE runs SET status = 'running', finished = '' WHERE id = ?")
      .bind(run)
      .step();
  Statement(*this, "DELETE FROM metrics WHERE run = ? AND step > ?").bind(run).bind(after).step();
}

void Records::finish_run(int64_t run, const std::string& status, const std::string& summary_json) {
  Statement update(*this, "UPDATE runs SET status = ?, summary = ?, finished = ? WHERE id = ?");
  update.bind(status).bind(summary_json).bind(now_utc()).bind(run).step();
}

std::vector<RunRecord> Records::runs(const std::string& kind) const {
  Statement select(*this,
                   "SELECT id, kind, name, folder, config, started, finished, status, summary "
                   "FROM runs WHERE ?1 = '' OR kind = ?1 ORDER BY id DESC");
  select.bind(kind);
  std::vector<RunRecord> rows;
  while (select.step()) {
    rows.push_back({select.integer(0), select.text(1), select.text(2), select.text(3),
                    select.text(4), select.text(5), select.text(6), select.text(7),
                    select.text(8)});
  }
  return rows;
}

std::optional<RunRecord> Records::find_run(const std::string& folder) const {
  for (auto& run : runs()) {
    if (run.folder == folder) return run;
  }
  return std::nullopt;
}

void Records::add_metrics(int64_t run, int64_t step,
                          std::span<const std::pair<std::string, double>> values) {
  execute("BEGIN IMMEDIATE");
  try {
    Statement insert(*this, "INSERT OR REPLACE INTO metrics VALUES(?, ?, ?, ?)");
    for (const auto& [name, value] : values) {
      insert.bind(run).bind(step).bind(name).bind(value).step();
      insert.reset();
    }
  } catch (...) {
    execute("ROLLBACK");
    throw;
  }
  execute("COMMIT");
}

std::vector<MetricRecord> Records::metrics(int64_t run, const std::string& name) const {
  Statement select(*this,
                   "SELECT step, value FROM metrics WHERE run = ? AND name = ? ORDER BY step");
  select.bind(run).bind(name);
  std::vector<MetricRecord> rows;
  while (select.step()) rows.push_back({select.integer(0), select.real(1)});
  return rows;
}

void Records::put_result(const std::string& scope, const std::string& key,
                         const std::string& json) {
  Statement insert(*this, "INSERT OR REPLACE INTO results VALUES(?, ?, ?, ?)");
  insert.bind(scope).bind(key).bind(json).bind(now_utc()).step();
}

std::optional<std::string> Records::get_result(const std::string& scope,
                                               const std::string& key) const {
  Statement select(*this, "SELECT value FROM results WHERE scope = ? AND key = ?");
  select.bind(scope).bind(key);
  if (!select.step()) return std::nullopt;
  return select.text(0);
}

std::vector<std::pair<std::string, std::string>> Records::results(const std::string& scope) const {
  Statement select(*this, "SELECT key, value FROM results WHERE scope = ? ORDER BY key");
  select.bind(scope);
  std::vector<std::pair<std::string, std::string>> rows;
  while (select.step()) rows.emplace_back(select.text(0), select.text(1));
  return rows;
}

std::string default_records_path() {
  const char* path = std::getenv("HEED_RECORDS");
  return path && *path ? path : "runs/records.sqlite";
}

}  // namespace heed::data
