// What the list of fields cannot say about a call of attend.
#include <algorithm>
#include <cmath>

#include "kernel/attend/call.h"

namespace heed::kernel {
namespace {

class Rules {
 public:
  Rules(const AttendCall& call, const CallSizes& sizes, heed_message* message)
      : call_(call), x_(call.in), o_(call.options), sizes_(sizes), message_(message) {}

  heed_status run() {
    heed_status status = numbers();
    if (status == HEED_OK) status = offsets();
    if (status == HEED_OK) status = heads();
    if (status == HEED_OK) status = tables();
    if (status == HEED_OK && given(x_.axes)) status = axes();
    if (status == HEED_OK && given(x_.block_start)) status = lists();
    return status;
  }

 private:
  template <class... Args>
  heed_status fail(const char* format, Args... args) {
    return call_fail(kAttend, HEED_INVALID_ARGUMENT, message_, format, args...);
  }
  static long long ll(int64_t x) { return x; }

  heed_status numbers() {
    const int64_t hq = sizes_["Hq"], hk = sizes_["Hk"];
    if (sizes_["D"] < 1 || sizes_["Dv"] < 1) return fail("D and Dv must be at least 1");
    if (hk < 1 || hq % hk != 0) {
      return fail("q has %lld heads and k %lld; the first must be a multiple of the second", ll(hq),
                  ll(hk));
    }
    if (o_.weight < 0 || o_.weight >= kWeights) return fail("unknown weight %lld", ll(o_.weight));
    if (o_.function < 0 || o_.function >= kGenericWeights) {
      return fail("unknown function %lld", ll(o_.function));
    }
    if (!(o_.power > 0)) return fail("power is %g, it must be positive", o_.power);
    if (!(o_.soft_cap >= 0)) return fail("soft_cap is %g, it must not be negative", o_.soft_cap);
    if (std::isinf(o_.scale)) return fail("scale must be finite");
    if (o_.window < 0) return fail("window is %lld, must not be negative", ll(o_.window));
    if (o_.sinks < 0) return fail("sinks is %lld, must not be negative", ll(o_.sinks));
    return HEED_OK;
  }

  // Packs and lengths; those of the queries are checked for every engine alike.
  heed_status offsets() {
    const int64_t tk = sizes_["Tk"];
    if (given(x_.cu_seqlens_k) && !call_.head.cu_seqlens) {
      return fail("cu_seqlens_k needs cu_seqlens_q");
    }
    if (given(x_.kv_lengths) && call_.head.cu_seqlens) {
      return fail("kv_lengths does not go with packs");
    }
    if (const int64_t* q = call_.head.cu_seqlens) {
      const bool own = given(x_.cu_seqlens_k);
      const int64_t* k = own ? attend_list(x_.cu_seqlens_k) : q;
      const int64_t n = call_.head.sequences;
      if (k[0] != 0) return fail("cu_seqlens_k starts at %lld, expected 0", ll(k[0]));
      for (int64_t i = 0; own && i < n; ++i) {
        if (k[i + 1] < k[i]) {
          return fail("cu_seqlens_k falls from %lld to %lld at entry %lld", ll(k[i]), ll(k[i + 1]),
                      ll(i + 1));
        }
      }
      if (k[n] != tk) {
        return fail("cu_seqlens_k%s ends at %lld, expected Tk = %lld", own ? "" : " (cu_seqlens_q)",
                    ll(k[n]), ll(tk));
      }
    }
    for (int64_t b = 0; given(x_.kv_lengths) && b < sizes_["B"]; ++b) {
      const int64_t length = attend_list(x_.kv_lengths)[b];
      if (length < 0 || length > tk) {
        return fail("kv_lengths[%lld] is %lld, Tk is %lld", ll(b), ll(length), ll(tk));
      }
    }
    return HEED_OK;
  }

  heed_status heads() {
    const std::pair<const char*, const heed_view*> lists[] = {{"head_window", &x_.head_window},
                                                              {"head_sinks", &x_.head_sinks}};
    for (const auto& [name, view] : lists) {
      for (int64_t h = 0; given(*view) && h < sizes_["Hk"]; ++h) {
        const int64_t value = attend_list(*view)[h];
        if (value < 0) return fail("%s is %lld, must not be negative", name, ll(value));
      }
    }
    return HEED_OK;
  }

  // Tables by distance reach from every query to every key that it may see.
  heed_status tables() {
    if ((o_.weight == static_cast<int64_t>(Weight::kUrpe)) != given(x_.relative_scale)) {
      return fail("the weight urpe and relative_scale come together");
    }
    if (!given(x_.relative_bias) && !given(x_.relative_scale)) return HEED_OK;
    const int64_t entries = sizes_["R"];
    if (entries % 2 != 1) {
      return fail("a table by distance has %lld entries a head, expected an odd number, 2P-1",
                  ll(entries));
    }
    if (given(x_.block_start)) return fail("tables by distance do not go with block lists");
    int64_t queries = 0, keys = 0;
    for (int64_t n = 0; n < attend_sequences(call_); ++n) {
      const int64_t* q = call_.head.cu_seqlens;
      queries = std::max(queries, q ? q[n + 1] - q[n] : sizes_["Tq"]);
      keys = std::max(keys, attend_keys(call_, n).count);
    }
    // Query i stands at i + Tk - Tq, so a key lies at most Tk - 1 behind and, not causal, Tq - 1
    // ahead of one.
    int64_t back = keys - 1, ahead = o_.causal ? 0 : queries - 1;
    if (!given(x_.head_window) && o_.window > 0 && o_.sinks == 0) {
      back = std::min(back, o_.window - 1), ahead = std::min(ahead, o_.window - 1);
    }
    const int64_t reach = (entries + 1) / 2;
    if (queries > 0 && keys > 0 && std::max(back, ahead) >= reach) {
      return fail("a table by distance [Hq,%lld] reaches %lld tokens, a query sees a key %lld away",
                  ll(entries), ll(reach - 1), ll(std::max(back, ahead)));
    }
    return HEED_OK;
  }

  heed_status axes() {
    const int64_t rank = sizes_["A"];
    if (rank < 1 || rank > kMaxAxes) {
      return fail("a grid has 1 to %d axes, got %lld", kMaxAxes, ll(rank));
    }
    if (o_.causal || o_.window > 0 || given(x_.head_window) || given(x_.block_start) ||
        given(x_.alibi_slopes) || given(x_.relative_bias) || given(x_.relative_scale) ||
        given(x_.kv_lengths) || call_.head.cu_seqlens) {
      return fail(
          "axes do not go with causal, window, block lists, slopes, tables by distance, packs or "
          "kv_lengths");
    }
    int64_t cells = 1;
    for (int64_t i = 0; i < rank; ++i) {
      const int64_t* axis = attend_list(x_.axes) + 4 * i;  // length, window, stride, causal
      if (axis[2] < 1 || axis[1] < axis[2] || axis[0] < axis[1]) {
        return fail(
            "axis %lld has length %lld, window %lld, stride %lld; expected 1 <= stride <= window "
            "<= length",
            ll(i), ll(axis[0]), ll(axis[1]), ll(axis[2]));
      }
      cells *= axis[0];
    }
    const int64_t tq = sizes_["Tq"], tk = sizes_["Tk"];
    if (tq > tk || tk > cells) {
      return fail("the grid has %lld cells, q %lld tokens and k %lld", ll(cells), ll(tq), ll(tk));
    }
    return HEED_OK;
  }

  heed_status lists() {
    if (o_.q_block < 1 || o_.k_block < 1 || !given(x_.block_index)) {
      return fail("block_start needs block_index, q_block and k_block");
    }
    int64_t longest = 0;
    for (int64_t n = 0; n < attend_sequences(call_); ++n) {
      const int64_t* q = call_.head.cu_seqlens;
      longest = std::max(longest, q ? q[n + 1] - q[n] : sizes_["Tq"]);
    }
    const int64_t blocks = (longest + o_.q_block - 1) / o_.q_block, heads = sizes_["Hl"];
    if ((heads != sizes_["Hk"] && heads != sizes_["Hq"]) || sizes_["L"] != blocks) {
      return fail("block_start has shape [%lld,%lld,%lld], expected [N,Hk or Hq,%lld]",
                  ll(x_.block_start.sizes[0]), ll(heads), ll(sizes_["L"] + 1), ll(blocks + 1));
    }
    const int64_t* first = attend_list(x_.block_start);
    const auto* list = static_cast<const int32_t*>(x_.block_index.data);
    const int64_t entries = sizes_["M"];
    for (int64_t row = 0; row < x_.block_start.sizes[0] * heads; ++row, first += blocks + 1) {
      for (int64_t i = 0; i < blocks; ++i) {
        if (first[i] < 0 || first[i + 1] < first[i] || first[i + 1] > entries) {
          return fail("block_start must rise within 0 and %lld (block_index's length)",
                      ll(entries));
        }
        for (int64_t e = first[i]; e < first[i + 1]; ++e) {
          if (list[e] < 0 || (e > first[i] && list[e] <= list[e - 1])) {
            return fail("block_index must rise within each list, entry %lld is %lld", ll(e),
                        ll(list[e]));
          }
        }
      }
    }
    return HEED_OK;
  }

  const AttendCall& call_;
  const AttendTensors<heed_view>& x_;
  const AttendSettings& o_;
  const CallSizes& sizes_;
  heed_message* message_;
};

}  // namespace

heed_status attend_rules(const void* call, int32_t /*pass*/, const CallSizes& sizes,
                         heed_message* message) {
  return Rules(*static_cast<const AttendCall*>(call), sizes, message).run();
}

}  // namespace heed::kernel
