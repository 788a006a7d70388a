// What calls of all layers share; see layer.h.
#include "mixer/layer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "io/error.h"

namespace heed::mixer {

bool is_causal(Pattern pattern) {
  return pattern == Pattern::kCausalSelf || pattern == Pattern::kCausalCross;
}
bool is_cross(Pattern pattern) {
  return pattern == Pattern::kCausalCross || pattern == Pattern::kNoncausalCross;
}
std::string pattern_name(Pattern pattern) {
  return std::string(is_causal(pattern) ? "causal " : "noncausal ") +
         (is_cross(pattern) ? "cross" : "self");
}

Layout Layout::of(const at::Tensor& x, const std::vector<int64_t>& cu_seqlens,
                  std::span<const int64_t> past) {
  Layout out;
  out.batch = x.size(0);
  out.length = x.size(1);
  out.pack = !cu_seqlens.empty();
  if (out.pack) {
    out.bounds = cu_seqlens;
    if (out.batch != 1 || out.bounds.front() != 0 || out.bounds.back() != out.length ||
        !std::is_sorted(out.bounds.begin(), out.bounds.end())) {
      throw UsageError("cu_seqlens must rise from 0 to the {} tokens of a pack with batch 1",
                       out.length);
    }
  } else {
    out.bounds.reserve(out.batch + 1);
    for (int64_t s = 0; s <= out.batch; ++s) out.bounds.push_back(s * out.length);
  }
  const int64_t sequences = static_cast<int64_t>(out.bounds.size()) - 1;
  if (!past.empty() && static_cast<int64_t>(past.size()) != sequences) {
    throw UsageError("{} states were given for {} sequences", past.size(), sequences);
  }
  out.positions.resize(out.batch * out.length);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t before = past.empty() ? 0 : past[s];
    const int64_t begin = out.bounds[s], count = out.bounds[s + 1] - begin;
    for (int64_t n = 0; n < count; ++n) out.positions[begin + n] = before + n;
    out.end = std::max(out.end, before + count);
  }
  return out;
}

const RopeTables& Layout::rotation(const Rope& rope, const at::Device& device) const {
  if (rotated_by_ != &rope) {
    const RopeTables& tables = rope.tables(end, device);
    const at::Tensor rows = at::tensor(positions, at::kLong).to(device);
    rotation_ = {tables.cos.index_select(0, rows), tables.sin.index_select(0, rows)};
    rotated_by_ = &rope;
  }
  return rotation_;
}

int64_t Call::sequences(const at::Tensor& x) const {
  const int64_t n = cu_seqlens.defined() ? cu_seqlens.size(0) - 1 : x.size(0);
  if (!states.empty() && static_cast<int64_t>(states.size()) != n) {
    throw UsageError("a call of {} sequences was given {} states", n, states.size());
  }
  return n;
}

at::Tensor Call::tap(const char* name, const at::Tensor& value) const {
  if (taps == nullptr) return value;
  const std::string full = layer < 0 ? name : fmt::format("{}.{}", layer, name);
  return taps->wants(full) ? taps->tap(full, value) : value;
}

}  // namespace heed::mixer
