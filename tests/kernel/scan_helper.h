// Random problems for the engine `scan`, and their results by the kernels and by the reference.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernel/scan/scan.h"

namespace heed::kernel::test {

using ScanViews = ScanTensors<heed_view>;

// The CPU row of the table on a call, after the checks that stand before every row, with a
// workspace of its own; and the reference. scan_message() says what was wrong.
heed_status scan_forward(const ScanCall& call, const heed_parallel* parallel);
heed_status scan_step(const ScanCall& call, const heed_parallel* parallel);
heed_status scan_backward(ScanCall call, const ScanViews& grads, const heed_parallel* parallel);
heed_status scan_reference(const ScanCall& call);
heed_status scan_backward_reference(ScanCall call, const ScanViews& grads);
const char* scan_message();

struct ScanCase {
  int64_t batch = 1, time = 40, heads = 2, dk = 16, dv = 16;
  Decay decay = Decay::kNone;
  Correction correction = Correction::kNone;
  Read read = Read::kAfter;
  bool bonus = false, initial = true;
  int32_t chunk = 64;
  int32_t dtype = HEED_FLOAT32;
  float log_decay = 0.1f;  // typical size; each entry is uniform in [-2, 0] times this
  float extreme = 0;       // share of decays that are 0, -inf or start of a run of -8
  float beta = 1;          // largest beta |k|^2 with keys of length 1
  std::vector<int64_t> cu_seqlens;
  uint64_t seed = 1;
  int64_t padding = 0;  // NaN columns after every row of the token tensors

  std::string name() const;
};

// A tensor of any storage type, with its values as they are stored, in double.
struct Stored {
  int32_t dtype = HEED_FLOAT32;
  std::vector<int64_t> sizes;
  int64_t padding = 0;
  std::vector<char> bytes;

  Stored() = default;
  Stored(int32_t dtype, std::vector<int64_t> sizes, int64_t padding = 0);
  heed_view view();
  int64_t count() const;
  double at(int64_t i) const;  // i-th element, padding not counted
  void set(int64_t i, double value);
  std::vector<double> values() const;
};

struct ScanRun {
  explicit ScanRun(const ScanCase& c);
  ScanCall args();            // views of the inputs and of out, final_state
  ScanCall reference_args();  // the same inputs, results in float64

  ScanCase c;
  Stored q, k, v, p, r, beta, log_decay, bonus, initial_state, out, final_state;
  Stored out64, final64;
};

struct ScanGradRun {
  explicit ScanGradRun(ScanRun& run, bool with_final = true);
  ScanViews grads();            // float32 results
  ScanViews reference_grads();  // float64 results

  Stored grad_out, grad_final_state;
  std::vector<Stored> results, results64;  // q k v p r beta log_decay bonus initial_state
};
extern const char* const kScanGradNames[9];

// |x - y| / |y| over all entries; |x - y| where y is 0. NaN anywhere gives infinity.
double relative_error(const std::vector<double>& x, const std::vector<double>& y);

}  // namespace heed::kernel::test
