// Windows in plan files, and what the kinds of program that have one share: sinks and a ring.
#pragma once

#include <cstdint>
#include <string>

#include "cache/plan/bits.h"
#include "cache/plan/kinds.h"

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

// An entry of the kind "window". At position p it sees the keys j <= p with j < sink or j > p - w.
struct WindowEntry {
  int64_t sink = 0;
  WindowRule window;
  Compensation comp;
  Bits bits;
};

// Throws Error naming `where` and the key for what is no such entry.
WindowEntry read_window_entry(const Json& entry, const std::string& where);
// Whether an entry of that kind, read or not, has compensation tokens.
bool has_compensation(const Json& entry);
// Of an entry that has been read.
WindowEntry window_entry(const Json& entry);
Json to_json(const WindowEntry& entry);

// Tokens of the window at capacity N >= 1: the rule's value, at least 1 and at most N.
int64_t window_length(const WindowRule& rule, int64_t n);

namespace program {

class RingKind : public ProgramKind {
 public:
  std::string_view name() const override { return "window"; }
  Json read(const Json& entry, const std::string& where) const override;
  int64_t rows(const Json& entry, int64_t tokens) const override;
  Json entry(const HeadProgram& program) const override;
  std::string id(const HeadProgram& program) const override;
  void runs(const HeadProgram& program, int64_t tokens, std::vector<RowRun>& out) const override;
  KeyLimit limit(const HeadProgram& program) const override;
};

}  // namespace program
}  // namespace heed
