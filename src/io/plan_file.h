// Attention plans: which program every KV head of a model runs, as the JSON of docs/plan-file.md.
//
//   {"version": 1, "model": SHA-256, "unit": "kv_head", "lengths": [4096],
//    "programs": [{"id": "full", "kind": "full"},
//                 {"id": "stream", "kind": "window", "sink": 4,
//                  "window": {"alpha": 252, "beta": 0, "min": 1, "round": 1}}],
//    "heads": [["full", "stream"], ...], "prefill": "same", "kv_bits": 16, "provenance": {...}}
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"

namespace heed {

// How the window of a head follows from N, the declared capacity of the cache in tokens.
struct WindowRule {
  enum class Kind {
    kLinear,  // alpha + beta N, at least `min`, rounded up to a multiple of `round`
    kRazor,   // max(s0, N / c): RazorAttention, arXiv 2407.15891
  };
  Kind kind = Kind::kLinear;
  double alpha = 0;
  double beta = 0;
  int64_t min = 1;
  int64_t round = 1;
  int64_t s0 = 4000;  // kRazor alone
  double c = 5;

  bool operator==(const WindowRule&) const = default;
};

// Extra tokens that stand for what a window dropped: their number, and what each counts for ("N_d":
// as many keys as were dropped; "1").
struct Compensation {
  int64_t count = 0;
  std::string weight = "N_d";

  bool operator==(const Compensation&) const = default;
};

// One head's rule. A window head at position p sees the keys j <= p with j < sink or j > p - w.
struct Program {
  enum class Kind { kFull, kWindow };
  std::string id;
  Kind kind = Kind::kFull;
  int64_t sink = 0;
  WindowRule window;  // and these, of window programs alone
  Compensation comp;

  bool operator==(const Program&) const = default;
};

struct Plan {
  enum class Prefill { kSame, kDense };
  int version = 1;
  std::string model;             // the plan hash of the model: 64 hexadecimal digits
  std::vector<int64_t> lengths;  // capacities that the budget was counted at; may be empty
  std::vector<Program> programs;
  std::vector<std::vector<int>> heads;  // [layer][KV head]: index of a program
  Prefill prefill = Prefill::kSame;
  int kv_bits = 16;
  Json provenance = Json::object();  // free: method, loss, budget, ...

  const Program& program(size_t layer, size_t head) const {
    return programs[static_cast<size_t>(heads[layer][head])];
  }
  bool all_full() const;
};

// Tokens of the window at capacity N >= 1: the rule's value, at least 1 and at most N. N for full.
int64_t window_length(const Program& program, int64_t n);

// Rows of K and of V that a head keeps at capacity N: min(N, sink + window + compensation tokens).
int64_t kept_tokens(const Program& program, int64_t n);

// Bytes of K and V of all heads at capacity N, one sequence: the sum of
// (head_dim + value_dim) * element_bytes * kept_tokens.
int64_t kv_bytes(const Plan& plan, int64_t n, int64_t head_dim, int64_t value_dim,
                 int64_t element_bytes);

// A plan of one full program, for `layers` x `kv_heads`.
Plan full_plan(int64_t layers, int64_t kv_heads, const std::string& model);

// Reads a plan. Error naming file and key for what is not a plan; UsageError for what a plan may
// say but Heed does not run yet (programs "select" and "linear", prefill "dynamic").
Plan parse_plan(std::string_view text, const std::string& file);
Plan read_plan(const std::string& path);

// Throws Error unless the plan could be read back: ids, indices, sizes, hash.
void check_plan(const Plan& plan, const std::string& file);

// UsageError unless the plan is for a model of that hash (`force`: of any hash) and shape.
void check_plan_fits(const Plan& plan, const std::string& file, const std::string& model,
                     int64_t layers, int64_t kv_heads, bool force);

Json plan_to_json(const Plan& plan);
std::string plan_text(const Plan& plan);  // the file's text: one line for each program and layer
void write_plan(const Plan& plan, const std::string& path);

}  // namespace heed
