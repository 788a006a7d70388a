// Decoding steps of several sequences side by side beside those of one alone, alternately.
#pragma once

#include <span>
#include <vector>

#include "bench/model.h"

namespace heed::bench {

// A record `generate` decode for one sequence and one for `options.batch` of them, all of which
// have read `tokens`; tokens_per_second counts those of all sequences, cpu_ms is the processor time
// of a step, and times_one how many times as many tokens a second the sequences together give as
// one does, by the wall clock and by processor time. Throws Error where a sequence's scores are not
// those that it gets alone, within `bound`.
std::vector<Record> time_batch(const Decoder& model, std::span<const int64_t> tokens,
                               const ModelOptions& options, double bound, Progress& progress);

}  // namespace heed::bench
