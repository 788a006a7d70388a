// Plans of published systems, in and out of Heed's plan (io/plan_file.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cache/plan/plan_file.h"

namespace heed {

// DuoAttention (arXiv 2410.10819): tab-separated gates, one row a layer, one column a KV head. A
// head is full iff its gate, clamped to [0, 1], is at least the `sparsity` quantile of all (linear
// between neighbours; equal gates count as falling by layer, then head); the others keep `sink`
// first and `window` last tokens. Sparsity 0: all full; 1: none. The gates go into the provenance.
struct DuoOptions {
  double sparsity = 0.5;
  int64_t sink = 64;
  int64_t window = 256;
};
Plan plan_from_duo(std::string_view tsv, const std::string& file, const std::string& model,
                   const DuoOptions& options = {});
// 1 for full heads, 0 for the others, which must share one program: UsageError otherwise.
std::string duo_from_plan(const Plan& plan);

// MoA (arXiv 2406.14909): {"alphas": [[L][H]], "betas": [[L][H]]}, a span of alpha + beta N tokens
// a head. Its runtime keeps 64 of them as sinks and rounds to blocks of 64, at least two; alpha >=
// 0 with beta >= 1 is full. Where the file has G rows for each of `kv_heads`, consecutive ones
// share a KV head and the longest span at `length` tokens counts; kv_heads 0: H is the number.
Plan plan_from_moa(std::string_view text, const std::string& file, const std::string& model,
                   int64_t kv_heads, int64_t length);
// UsageError for a window that MoA's runtime would run otherwise.
std::string moa_from_plan(const Plan& plan);

// RazorAttention (arXiv 2407.15891): {"LAYER": [KV heads]} names the retrieval heads, which stay
// full; the others keep sinks, max(s0, N / c) last tokens and one compensation token.
struct RazorOptions {
  int64_t sink = 4;
  int64_t s0 = 4000;
  double c = 5;
  bool compensation = true;
};
Plan plan_from_razor(std::string_view text, const std::string& file, const std::string& model,
                     int64_t layers, int64_t kv_heads, const RazorOptions& options = {});
// Names the full heads of every layer that has one.
std::string razor_from_plan(const Plan& plan);

}  // namespace heed
