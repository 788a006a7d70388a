// Any engine that is described by a list of fields: random calls, its backends against its
// reference in float64, for outputs, final states, gradients and steps, in every dtype and on every
// SIMD target.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernel/call/fields.h"
#include "kernel/scan_helper.h"

namespace heed::kernel::test {

struct TestedEngine {
  const CallFields& fields;
  std::span<const heed_backend> (*backends)();
  heed_status (*reference)(const void* call, int32_t pass, heed_message* message);
  // A value for a tensor of this name; normal and uniform numbers are at hand.
  std::function<double(const std::string& name, double normal, double uniform)> sample;
};

struct EngineCase {
  std::map<std::string, int64_t> sizes;
  std::set<std::string> absent;      // optional inputs that are not given
  std::map<std::string, int> ranks;  // which alternative of a shape, by its rank; else the first
  std::map<std::string, double> options;
  std::vector<int64_t> cu_seqlens;
  int32_t dtype = HEED_FLOAT32;
  int64_t padding = 0;  // NaN columns after every row of tokens and gates
  uint64_t seed = 1;

  std::string name() const;
};

// A call with its memory, results of the kernel and of the reference.
class EngineRun {
 public:
  EngineRun(const TestedEngine& engine, const EngineCase& c);

  void* call(bool reference);  // views of the inputs, of outputs and gradients
  Stored& tensor(const std::string& name);
  Stored& result(const std::string& name, bool reference);    // outputs
  Stored& gradient(const std::string& name, bool reference);  // of inputs
  bool has(const std::string& name) const;

  // Runs a pass on a backend with a workspace of exactly the size that it asked for.
  void run(const heed_backend& backend, int32_t pass, const heed_parallel* parallel,
           bool keep = false);
  void run_reference(int32_t pass);

 private:
  const TestedEngine& engine_;
  EngineCase case_;
  std::vector<Stored> in_, out_, out64_, incoming_, grad_, grad64_;
  std::vector<int64_t> bytes_;
  std::vector<char> saved_;
};

// Forward and backward (with and without what forward keeps), and a step where T allows, of every
// backend against the reference: float32 within 2e-6 and 1e-5, 16 bits within their rounding.
void expect_engine_equals_reference(const TestedEngine& engine, const EngineCase& c,
                                    const heed_parallel* parallel = nullptr);

// The case on every instruction set of this machine, in every dtype.
void expect_every_target(const TestedEngine& engine, EngineCase c);

}  // namespace heed::kernel::test
