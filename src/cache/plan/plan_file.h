// Attention plans: which program every KV head of a model runs, as the JSON of docs/plan-file.md.
//
//   {"version": 1, "model": SHA-256, "unit": "kv_head", "lengths": [4096],
//    "programs": [{"id": "full", "kind": "full"},
//                 {"id": "stream", "kind": "window", "sink": 4,
//                  "window": {"alpha": 252, "beta": 0, "min": 1, "round": 1}}],
//    "heads": [["full", "stream"], ...], "prefill": "same", "kv_bits": 16, "provenance": {...}}
//
// Version 2: programs may say "k_bits" and "v_bits", "kv_bits" is gone, and "centres" holds what is
// taken off the keys and values of each head before they are kept in few bits (bits.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cache/plan/bits.h"
#include "cache/plan/window_entry.h"
#include "io/json.h"

namespace heed {

// One entry of "programs".
struct Program {
  std::string id;
  Json entry = {{"kind", "full"}};  // as its kind reads it: "kind" and that kind's keys, no id

  bool full() const { return entry.at("kind") == "full" && !in_few_bits(); }
  bool in_few_bits() const { return entry.contains("k_bits") || entry.contains("v_bits"); }
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
  int kv_bits = 16;                  // version 1 alone
  Centres centres;                   // [layer][KV head]; empty: none
  Json provenance = Json::object();  // free: method, loss, budget, ...

  const Program& program(size_t layer, size_t head) const {
    return programs[static_cast<size_t>(heads[layer][head])];
  }
  bool all_full() const;
  bool in_few_bits() const;  // some program
};

// Rows of K and of V that a head keeps at capacity N >= 1: at most N.
int64_t kept_tokens(const Program& program, int64_t n);

// Bytes of K and V of all heads at capacity N, one sequence: the sum of
// (head_dim + value_dim) * element_bytes * kept_tokens, and of what few bits take in their place.
int64_t kv_bytes(const Plan& plan, int64_t n, int64_t head_dim, int64_t value_dim,
                 int64_t element_bytes);

// A plan of one full program, for `layers` x `kv_heads`.
Plan full_plan(int64_t layers, int64_t kv_heads, const std::string& model);

// A program of kind "window".
Program window_program(const std::string& id, const WindowEntry& entry);

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
