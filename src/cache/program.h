// What each KV head of a model keeps and sees: the plan as the caches and the attention calls use
// it, with every window length already a number of tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernel/quant/quant.h"

namespace heed {

// What a window head keeps of the keys that it no longer sees: nothing, or the mean of their keys
// and the mean of their values as one more token, which counts for as many keys as were dropped
// (RazorAttention, arXiv 2407.15891: logit q.k + ln N_d) or for one.
enum class Dropped : uint8_t { kGone, kMean, kMeanAsOne };

// The means of a head's keys and values, [k_dim] and [v_dim]; empty: none.
struct Centre {
  std::vector<float> k, v;
};

// The query at position p sees the keys j <= p with j < sinks or j > p - window; window 0: all j <=
// p. Keys and values are kept in so many bits a number (16: as the cache's dtype says; fewer:
// kernel/quant/quant.h), but for those of the first `sinks` positions, which stay exact. Every
// query sees every key as it is kept, its own too.
struct HeadProgram {
  int64_t window = 0;
  int64_t sinks = 0;  // of a head that keeps all: positions that stay exact beside few bits
  Dropped dropped = Dropped::kGone;
  int8_t k_bits = 16, v_bits = 16;
  // What is taken off every key and value before it is kept in few bits, and added again when it is
  // read; null: nothing. No part of comparisons: heads of one program differ in it.
  std::shared_ptr<const Centre> centre;

  bool full() const { return window == 0; }
  bool in_few_bits() const { return k_bits < 16 || v_bits < 16; }
  // Positions whose keys and values are there after `tokens` tokens.
  int64_t held(int64_t tokens) const { return full() ? tokens : std::min(tokens, sinks + window); }
  // Rows of keys, the mean of those dropped among them.
  int64_t kept(int64_t tokens) const {
    return held(tokens) + (dropped != Dropped::kGone && tokens > held(tokens) ? 1 : 0);
  }
  // Bytes of K and V after `tokens` tokens: the rows kept, and the exact ones beside few bits; e
  // bytes a number in the cache's dtype.
  int64_t bytes(int64_t tokens, int64_t k_dim, int64_t v_dim, int64_t e) const {
    const auto side = [&](int bits, int64_t dim) {
      return bits < 16 ? kernel::row_bytes(bits, dim) + 2 : dim * e;
    };
    const int64_t exact = in_few_bits() ? std::min(tokens, sinks) * (k_dim + v_dim) * e : 0;
    return exact + kept(tokens) * (side(k_bits, k_dim) + side(v_bits, v_dim));
  }
  bool operator==(const HeadProgram& o) const {
    return window == o.window && sinks == o.sinks && dropped == o.dropped && k_bits == o.k_bits &&
           v_bits == o.v_bits;
  }
};

// The positions that a head holds no longer when `count` tokens come after `length`: [old_begin,
// old_end) of what it held, [new_begin, new_end) of the tokens that come.
struct Evicted {
  int64_t old_begin = 0, old_end = 0, new_begin = 0, new_end = 0;

  Evicted(const HeadProgram& p, int64_t length, int64_t count) {
    if (p.full()) return;
    const int64_t first = std::max(p.sinks, length + count - p.window);  // held afterwards
    old_begin = std::max(p.sinks, length - p.window);
    old_end = std::max(old_begin, std::min(first, length));
    new_begin = std::max(p.sinks, length);
    new_end = std::max(new_begin, first);
  }
  int64_t total() const { return old_end - old_begin + new_end - new_begin; }
};

struct Programs {
  std::vector<std::vector<HeadProgram>> heads;  // [layer][KV head]
  // The first pass over an empty state sees everything; windows hold from then on.
  bool dense_prefill = false;
};

}  // namespace heed
