// A call of attend on tensors: its list of fields. Equations and rules of who sees whom stand in
// attend.h; table.h makes the jobs of a call, which caches make themselves.
//
// Query i of a sequence stands at position i + Tk - Tq: the last query stands at the last key.
// Query head h reads KV head h div (Hq / Hk).
#pragma once

#include <cstdint>
#include <limits>

#include "kernel/attend/attend.h"
#include "kernel/call/check.h"
#include "kernel/call/fields.h"

namespace heed::kernel {

template <class X>
struct AttendTensors {
  X q, k, v, key_bias, q_bias, alibi_slopes, relative_bias, relative_scale, cu_seqlens_k,
      kv_lengths, head_window, head_sinks, block_start, block_index, axes, out, lse;
};
struct AttendSettings {
  int64_t causal = 0;
  double scale = std::numeric_limits<double>::quiet_NaN();
  int64_t window = 0, sinks = 0;
  double soft_cap = 0;
  int64_t weight = 0;  // kernel::Weight
  double bias = std::numeric_limits<double>::quiet_NaN();
  int64_t function = 0;  // of kGenericWeights
  double power = 1;
  int64_t q_block = 0, k_block = 0, any = 0;
};
using AttendCall = Call<AttendTensors, AttendSettings>;

inline constexpr TensorField kAttendTensors[] = {
    {"q", Role::kToken, "B,Tq,Hq,D", true, "queries"},
    {"k", Role::kKey, "B,Tk,Hk,D", true, "keys"},
    {"v", Role::kKey, "B,Tk,Hk,Dv", true, "values"},
    {"key_bias", Role::kBias, "B,Tk,Hq", false, "added to the logits of a key; -inf hides it"},
    {"q_bias", Role::kBias, "B,Tq,Hq", false, "added to the logits of a query; finite"},
    {"alibi_slopes", Role::kParam, "Hq", false, "times the distance, taken from the logits"},
    {"relative_bias", Role::kParam, "Hq,R", false, "R = 2P-1: added by distance, entry P-1 is 0"},
    {"relative_scale", Role::kParam, "Hq,R", false, "of the weight urpe, by distance"},
    {"cu_seqlens_k", Role::kIndex, "N+1", false, "packs: offsets of the keys; else the queries'"},
    {"kv_lengths", Role::kIndex, "B", false, "how many keys of each sequence count"},
    {"head_window", Role::kIndex, "Hk", false, "window of each KV head, in place of window"},
    {"head_sinks", Role::kIndex, "Hk", false, "sinks of each KV head, in place of sinks"},
    {"block_start", Role::kIndex, "N,Hl,L+1", false, "lists of L query blocks; Hl is Hk or Hq"},
    {"block_index", Role::kIndex32, "M", false, "the key blocks of the lists, rising in each"},
    {"axes", Role::kIndex, "A,4", false, "a grid: length, window, stride, causal of each axis"},
    {"out", Role::kOut, "B,Tq,Hq,Dv", true, "0 for a query that sees no key"},
    {"lse", Role::kStat, "B,Tq,Hq", false, "ln sum exp; -inf for such a query, 0 unnormalised"}};
inline constexpr OptionField kAttendOptions[] = {
    {"causal", OptionKind::kFlag, 0, "no key behind the query's position"},
    {"scale", OptionKind::kMaybe, 0, "of q.k; not given: 1 / sqrt(D)"},
    {"window", OptionKind::kInteger, 0, "keys nearer than this are seen; 0: all"},
    {"sinks", OptionKind::kInteger, 0, "first keys that no window hides"},
    {"soft_cap", OptionKind::kNumber, 0, "c of c tanh(x / c); 0: none"},
    {"weight", OptionKind::kWord, 0, "from logits to weights", kWeightNames},
    {"bias", OptionKind::kMaybe, 0,
     "added before sigmoid (not given: -ln of the keys) or generic (0)"},
    {"function", OptionKind::kWord, 0, "of the weight generic", kGenericNames},
    {"power", OptionKind::kNumber, 1, "of the function relu"},
    {"q_block", OptionKind::kInteger, 0, "queries a block of the lists"},
    {"k_block", OptionKind::kInteger, 0, "keys a block of the lists"},
    {"any", OptionKind::kFlag, 0, "a key is seen by list or by window, not by both"}};

heed_status attend_rules(const void* call, int32_t pass, const CallSizes& sizes,
                         heed_message* message);

inline constexpr CallFields kAttend =
    call_fields<AttendCall>("attend", "out_i = sum_j weight(cap(scale q_i.k_j) + biases) v_j",
                            kAttendTensors, kAttendOptions,
                            {.rules = attend_rules,
                             .pack = "cu_seqlens_q",
                             .time = "Tq",
                             .steps = false,
                             .keeps_outputs = true});

// The CPU row. Scratch is kept by the calling thread from call to call (attend_release frees it).
std::span<const heed_backend> attend_backends();

// What a call says in other words.
inline int64_t attend_sequences(const AttendCall& c) {
  return c.head.cu_seqlens ? c.head.sequences : c.in.q.sizes[0];
}
inline const int64_t* attend_list(const heed_view& index) {
  return static_cast<const int64_t*>(index.data);
}
// First key and number of keys of sequence n.
struct AttendKeys {
  int64_t first, count;
};
inline AttendKeys attend_keys(const AttendCall& c, int64_t n) {
  if (const int64_t* q = c.head.cu_seqlens) {
    const int64_t* k = given(c.in.cu_seqlens_k) ? attend_list(c.in.cu_seqlens_k) : q;
    return {k[n], k[n + 1] - k[n]};
  }
  return {0, given(c.in.kv_lengths) ? attend_list(c.in.kv_lengths)[n] : c.in.k.sizes[1]};
}

}  // namespace heed::kernel
