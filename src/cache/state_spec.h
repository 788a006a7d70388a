// What decoding keeps for one sequence of one layer, as a description: rows of keys and values,
// tensors of fixed shape, the last inputs of something that looks back. A layer says what it needs
// (mixer/layer.h); State (state.h) holds it, forks, saves, loads and cuts it.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "cache/program.h"

namespace heed {

using NamedTensors = std::map<std::string, at::Tensor>;

// Numbers that lie beside every row: of a KV head, float32 (a bias, a log weight).
struct Column {
  std::string name;
  int64_t width = 1;  // 1, or the query heads of a KV head
};

// Keys and values of every token, KV head by KV head as its program says (rows.h).
struct RowsPart {
  std::string name;  // empty: the layer's only rows; else part of the names in saved states
  int64_t k_dim = 0, v_dim = 0;
  bool v_in_k = false;  // a value is the first v_dim numbers of its key, and is not kept twice
  int64_t every = 1;    // tokens for which one row stands; an incomplete group of them has none
  std::vector<Column> columns;
  std::vector<HeadProgram> programs;  // one a KV head
  bool dense_prefill = false;  // a first pass of several tokens sees everything; windows hold later
  at::ScalarType dtype = at::kFloat;  // float32, bfloat16 or float16
  // Heads of one program in one growing tensor, as devices need on which starting a call costs more
  // than its work; else pages of 64 tokens. Needed on devices other than the CPU.
  bool grouped = false;

  // What a head's rows cost: elements of k and v of one token.
  int64_t width() const { return k_dim + (v_in_k ? 0 : v_dim); }
  // Bytes of a row of a head's keys and values as its program keeps it, columns too, and of an
  // exact one.
  int64_t row_bytes(const HeadProgram& program) const;
  int64_t exact_row_bytes() const;
  // The plan's formula: the sum over heads of the rows kept, min(N, sinks + window), times their
  // bytes; the first `sinks` once more, exactly, where the others are in few bits; and one row for
  // the mean of what was dropped where a program keeps it (which lies there in float32 besides).
  int64_t formula_bytes(int64_t tokens) const;
};

// A tensor that a step replaces: zero before the first token.
struct FixedPart {
  std::string name;
  std::vector<int64_t> shape;
  at::ScalarType dtype = at::kFloat;
};

// The last `most` inputs [most, width], zero before the first token; most = 0: all of them.
struct HistoryPart {
  std::string name;
  int64_t width = 0, most = 0;
  at::ScalarType dtype = at::kFloat;
};

using StatePart = std::variant<RowsPart, FixedPart, HistoryPart>;

struct StateSpec {
  std::vector<StatePart> parts;
  at::Device device = at::kCPU;

  bool empty() const { return parts.empty(); }
  // What State::bytes() gives after `tokens` tokens, one at a time or in chunks.
  int64_t bytes(int64_t tokens) const;
  // Whether a state may be cut back to any earlier length while no window has dropped a row: a
  // recurrence has forgotten what was before.
  bool can_truncate() const;
  // Whether a first pass of several tokens must come in one piece (a plan with dense prefill).
  bool dense_prefill() const;
};

}  // namespace heed
