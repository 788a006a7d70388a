// The one description of a system: what `heed list` and `heed show` print, what `heed apply` checks
// its inputs against, and what the property suites test it by.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace heed::mixer {

using SettingList = std::vector<std::pair<std::string, std::string>>;  // as given: name, text
using Sizes = std::map<std::string, int64_t>;                          // by dimension name

enum class Dtype { kFloat, kInt64, kBool };

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
  kOffsets,     // cu_seqlens: int64, never made but by the tests of packs
  kIndex        // int64 in least .. below-1; bool: either
};

// One tensor of `heed apply`.
//
// `shape` lists dimensions, separated by commas: "B,T,H,K", "H,T+S-1", "B,H,4 D+2", "Hk V",
// "B,ceil(T/block)". A dimension is an expression over names with + - * / ^, products also by a
// space, and ceil, floor, min, max. A name is one size for the whole call, fixed by the first
// tensor that has it; or a setting with a value (a list: the product of its entries, `grid[0]` one
// of them; true is 1). Alternatives: "B,T,N|B,T,G,N" of whole shapes, "(B|1),T" of one dimension.
// "Ns" is the number of sequences: B, or those of the pack.
//
// `when` says for which calls the tensor is meant: conditions separated by commas, all of which
// must hold; "phi=exp|relu": the setting has one of these values; "causal[0]=1": the
// first entry of a list; "grid": the setting has a value, or the tensor of that name is given.
struct TensorSpec {
  std::string name;
  std::string shape;
  bool optional = false;
  bool token = false;  // converted by --dtype
  Sample sample = Sample::kNormal;
  std::string when;  // empty: always
  bool grad =
      true;  // outputs: takes grad_NAME under --grad; inputs: false if grad_NAME is always 0
  bool given = false;  // inputs: the gradient is a convention (straight through), not a derivative
  Dtype dtype = Dtype::kFloat;
  std::string group;  // optional inputs of one group come together or not at all
  std::string below;  // int64: every entry is in least .. below-1 (an expression); empty: any
  int64_t least = 0;

  bool integer() const { return dtype == Dtype::kInt64; }

  TensorSpec maybe() const { return with(&TensorSpec::optional, true); }
  TensorSpec only(const std::string& condition) const { return with(&TensorSpec::when, condition); }
  TensorSpec together(const std::string& name_of_group) const {
    return maybe().with(&TensorSpec::group, name_of_group);
  }
  TensorSpec constant() const { return with(&TensorSpec::grad, false); }
  TensorSpec straight_through() const { return with(&TensorSpec::given, true); }
  template <typename T>
  TensorSpec with(T TensorSpec::*field, const T& value) const {
    TensorSpec changed = *this;
    changed.*field = value;
    return changed;
  }
};

enum class SettingType { kBool, kInt, kNumber, kWord, kInts, kWords };

// What a setting may hold. Numbers of a list are written "7x13" or "7,13".
using Value = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>,
                           std::vector<std::string>>;

struct SettingSpec {
  std::string name;
  SettingType type = SettingType::kNumber;
  std::string default_value;       // as printed: "64", "1/sqrt(K)"; one that is no value of the
                                   // type leaves the setting without a value ("0, off" is 0)
  std::vector<std::string> words;  // kWord, kWords: the values; kInts: names of 0, 1, ..
  bool required = false;
  double least = -std::numeric_limits<double>::infinity();  // of a number, of each of a list
  double most = std::numeric_limits<double>::infinity();
  std::vector<std::string> tries;  // values worth testing; of kBool and kWord all are

  SettingSpec needed() const {
    SettingSpec changed = *this;
    changed.required = true;
    return changed;
  }
  SettingSpec at_least(double value) const {
    SettingSpec changed = *this;
    changed.least = value;
    return changed;
  }
  SettingSpec trying(std::vector<std::string> values) const {
    SettingSpec changed = *this;
    changed.tries = std::move(values);
    return changed;
  }
};

// naive, parallel, chunked or recurrent, and the calls that have it ("causal=true"; empty: all).
struct FormSpec {
  std::string name;
  std::string when;
  FormSpec(const char* form) : name(form) {}  // NOLINT(google-explicit-constructor)
  FormSpec(std::string form, std::string condition)
      : name(std::move(form)), when(std::move(condition)) {}
};

// The row of the table in docs/apply.md (fixed names: a program that writes such a file works with
// every later version). Two specs may share a name if their `when` exclude each other.
struct ApplyRow {
  std::vector<TensorSpec> inputs;
  std::vector<SettingSpec> settings;
  std::vector<TensorSpec> outputs;
  std::vector<FormSpec> forms;  // of those with the settings, the first is the default

  const TensorSpec* input(const std::string& name) const;
  const SettingSpec* setting(const std::string& name) const;
  bool has_form(const std::string& form) const;
};

// What an output may know of later tokens.
enum class Causality {
  kStrict,          // nothing
  kSelectionLeaky,  // which keys are chosen may depend on them; values and gradients do not
  kLeaky,           // a causal mechanism that lets something through, as its authors' code does
  kNone             // everything
};

enum class StateGrowth { kFixed, kBounded, kGrows };

// What is true of a mixer, for plans and for the property suites.
struct Traits {
  Causality causality = Causality::kStrict;  // of calls that are causal (see is_causal)
  StateGrowth state = StateGrowth::kGrows;   // with the tokens read
  bool linear_time = false;                  // cost linear in T
  bool heads_independent = true;
  bool resets = false;         // takes a log decay of -inf
  bool chunk_matters = false;  // the setting `chunk` is part of the mathematics
  bool can_truncate = false;   // the state can be cut back to an earlier length
};

// One call worth testing: settings, sizes that go with them, optional inputs left out.
struct Try {
  SettingList settings;
  Sizes sizes;
  std::vector<std::string> without;
};

// Relative errors that are allowed against float64, and why if they are not the usual ones.
struct Bound {
  double forward = 2e-6;
  double backward = 1e-5;
  std::string reason;
};

// How the suites make and call a mechanism's layer.
struct LayerTest {
  std::string options;        // a JSON object; empty: the layer's defaults
  std::string smooth;         // the same without choices that jump (top-k); empty: as options
  std::vector<int64_t> grid;  // Call::grid; its cells are the only number of tokens that is taken
};

// How the property suites test a mechanism. What is empty has a sensible default.
struct TestCard {
  std::string batch = "B";  // names of the dimensions with these roles; "" if there is none
  std::string queries = "T";
  std::string keys = "T";
  std::vector<std::string> heads = {"H"};
  Sizes sizes;         // of the others, and of those above but the tokens; else batch 2, heads 3,
                       // others 3
  Sizes large;         // sizes of an ordinary call (float32 against float64 once)
  SettingList always;  // given in every try that does not set them
  SettingList timed;   // in their place where `heed bench mixers` times an ordinary call
  std::vector<Try> tries;                             // besides one for each value of a setting
  std::vector<int64_t> lengths = {0, 1, 2, 37, 131};  // tokens; tries that fix them: only those
  std::vector<int64_t> cuts = {0, 1, 16, 40, 41};     // where prefill may be cut, of 41 tokens
  Bound bound;
  LayerTest layer;
};

struct Card {
  std::string id;
  // From systems.tsv, for every system.
  std::string title;
  std::string family;  // dense | linear | recurrent | sparse | inference | inspection | vision | ..
  std::string kind;    // mixer, block, ...
  std::string paper;   // arXiv id
  bool ready = false;  // else planned
  // What follows is empty for planned systems.
  std::string equations;                 // one line each
  std::string patterns = "causal self";  // of causal self, noncausal self, causal cross, noncausal
                                         // cross; separated by ", "
  std::string state_size;  // numbers kept while decoding, per sequence: an expression as in shapes
  std::string state_note;  // what else a layer keeps, in words
  std::string try_line;    // a command that works; empty: the shortest one
  ApplyRow apply;
  TestCard tests;
  bool has_layer = false;

  bool has_pattern(const std::string& pattern) const;
};

}  // namespace heed::mixer
