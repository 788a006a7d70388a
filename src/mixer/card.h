// The one description of a system: what `heed list` and `heed show` print, and what `heed apply`
// checks its inputs against.
#pragma once

#include <string>
#include <vector>

namespace heed::mixer {

// How to make an ordinary value of an input: what property tests and benchmarks feed.
enum class Sample {
  kNormal,      // N(0, 1)
  kKey,         // normal, scaled to expected length 1
  kUnit,        // normal, scaled to length 1 over the last dimension
  kLogDecay,    // <= 0, mostly near 0
  kCorrection,  // normal, scaled to length 1/2: with a unit r the recurrence stays bounded
  kGate,        // uniform in (0, 1)
  kStep,        // positive, around 0.1
  kNegative,    // -exp(N(0, 1/4))
  kSlope,       // positive, 2^-1 .. 2^-8
  kOffsets      // cu_seqlens
};

// One tensor of `heed apply`. `shape` is a comma-separated list of names ("B,T,H,K"), each one size
// for the whole call: the first tensor that has a name fixes it. "S" is the number of states: B, or
// N in a pack.
struct TensorSpec {
  std::string name;
  std::string shape;
  bool optional = false;
  bool token = false;  // converted by --dtype
  Sample sample = Sample::kNormal;
  std::string when;  // "setting=true" or "setting=false" that it belongs to; empty: always
  bool grad = true;  // outputs: takes grad_NAME under --grad

  bool integer() const { return sample == Sample::kOffsets; }
};

enum class SettingType { kBool, kInt, kNumber };

struct SettingSpec {
  std::string name;
  SettingType type = SettingType::kNumber;
  std::string default_value;  // as printed: "1/sqrt(K)"
};

// The row of the table in docs/apply.md (fixed names: a program that writes such a file works with
// every later version).
struct ApplyRow {
  std::vector<TensorSpec> inputs;
  std::vector<SettingSpec> settings;
  std::vector<TensorSpec> outputs;
  std::vector<std::string> forms;  // of naive, parallel, chunked, recurrent; the default first

  const TensorSpec* input(const std::string& name) const;
  bool has_form(const std::string& form) const;
};

struct Card {
  std::string id;
  std::string title;
  std::string
      family;        // dense | linear | recurrent | sparse | inference | inspection | vision | ...
  std::string kind;  // mixer, block, ...
  bool ready = false;  // else planned
  // What follows is empty for planned systems.
  std::string paper;       // arXiv id
  std::string equations;   // one line each
  std::string patterns;    // causal self, noncausal self, ...
  std::string state_size;  // numbers kept while decoding, per layer
  std::string try_line;    // a command that works
  ApplyRow apply;
  bool has_layer = false;
};

}  // namespace heed::mixer
