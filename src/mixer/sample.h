// Ordinary inputs for any mechanism, made from its card alone: what property tests and benchmarks
// feed.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "mixer/common/shape.h"
#include "mixer/registry.h"

namespace heed::mixer {

// Calls worth testing: the card's defaults, every other value of its true/false settings and words,
// the values its settings name, and the tries of its test card; each with the settings that the
// card always gives.
std::vector<Try> tries(const Mechanism& mechanism);

// The sizes of one try: those of the test card, `tokens` queries and keys unless the try fixes
// them.
Sizes sizes_of(const Mechanism& mechanism, const Try& one, int64_t tokens);
bool fixes_tokens(const Mechanism& mechanism, const Try& one);
// Every name that the row's shapes use, with the default for those that `sizes` leaves out.
Names names_of(const Mechanism& mechanism, const Sizes& sizes, const SettingList& settings);

struct SampleOptions {
  bool optional = true;  // optional tensors too (offsets never)
  bool extreme = false;  // gates of exactly 0 and 1, decays of 0, -8 and -inf
  at::ScalarType dtype = at::kFloat;
  size_t alternative = 0;  // of shapes that have several, modulo their number
  std::vector<std::string> without;
};

// Inputs of the row that go with the settings; deterministic in `seed`.
NamedTensors make_inputs(const Mechanism& mechanism, const Sizes& sizes,
                         const SettingList& settings, uint64_t seed,
                         const SampleOptions& options = {});
// The same for a try.
NamedTensors make_inputs(const Mechanism& mechanism, const Try& one, int64_t tokens, uint64_t seed,
                         SampleOptions options = {});

}  // namespace heed::mixer
