// What a timing leaves: one record an operator, pass and shape, with the rates that it reached, the
// fraction of what this machine can do, its error, and the peers that were timed beside it.
// docs/bench.md describes the JSON field by field.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "io/json.h"

namespace heed::bench {

// Another implementation of the same thing, timed alternately with ours; `reason` instead of a time
// where it cannot be had.
struct PeerRecord {
  std::string name, version, reason;
  double ms = 0, ms_min = 0, ms_max = 0;
  double error = 0;  // negative: not known
};

struct Record {
  std::string name;  // what --filter matches: "attend/forward/float32/T512-D64-H8"
  std::string op, pass, dtype;
  std::string arithmetic;  // dtype that is computed in, for of_matmul; empty: dtype
  Json shape = Json::object();
  double ms = 0, ms_min = 0, ms_max = 0;  // median and range
  int runs = 0;
  int64_t bytes = 0, flops = 0;  // the least that must move and be computed
  double error = 0;              // against `reference`
  std::string reference = "float64";
  int64_t peak_bytes = 0;      // 0: the device cannot tell
  Json more = Json::object();  // further fields, such as tokens_per_second
  std::vector<PeerRecord> peers;
};

// What this machine reached in this run.
struct Machine {
  std::string device;
  int cores = 0;
  int threads = 0;
  double memory_gb = 0;
  double copy_gbps = 0;                         // bytes read plus written
  double read_gbps = 0;                         // a sum
  std::map<std::string, double> matmul_tflops;  // by dtype
  std::string heed, commit, pytorch, cuda, compiler, date;
  bool multiprocessors = false;  // `cores` counts a GPU's multiprocessors
};

Json to_json(const Machine& machine);
// With gbps, tflops, of_copy, of_read, of_matmul worked out; of_matmul is null where no product of
// that dtype was measured.
Json to_json(const Record& record, const Machine& machine);
Json to_json(const Machine& machine, const std::vector<Record>& records);

// For people: a line on the machine, then a line a record. `file` is what to_json() made.
std::string text_table(const Json& file);

}  // namespace heed::bench
