// What each KV head of a model keeps and sees: the plan as the caches and the attention calls use
// it, with every window length already a number of tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace heed {

// The query at position p sees the keys j <= p with j < sinks or j > p - window; window 0: all j <=
// p.
struct HeadProgram {
  int64_t window = 0;
  int64_t sinks = 0;

  bool full() const { return window == 0; }
  // Positions kept after `tokens` tokens.
  int64_t kept(int64_t tokens) const { return full() ? tokens : std::min(tokens, sinks + window); }
  bool operator==(const HeadProgram&) const = default;
};

struct Programs {
  std::vector<std::vector<HeadProgram>> heads;  // [layer][KV head]
  // The first pass over an empty state sees everything; windows hold from then on.
  bool dense_prefill = false;
};

}  // namespace heed
