// What every pass of the scan shares: rows of tokens, and states in tiles.
#include <algorithm>
#include <cstdint>

#include "kernel/scan/problem.h"

#if defined(HEED_SCAN_TOKEN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_SCAN_TOKEN_INL_H_
#undef HEED_SCAN_TOKEN_INL_H_
#else
#define HEED_SCAN_TOKEN_INL_H_
#endif

#include "kernel/simd/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::HWY_NAMESPACE {

// A state of dk rows and dv columns in memory: rows lds floats apart, an odd number of cache lines
// where they are long.
struct StateShape {
  int64_t dk, dv, ldv, lds;

  StateShape(int64_t rows, int64_t columns) : dk(rows), dv(columns), ldv(pad_to(columns, 16)) {
    lds = ldv % 32 == 0 ? ldv + 16 : ldv;
  }
  int64_t floats() const { return dk * lds; }
};

[[maybe_unused]] static HWY_NOINLINE void load_state(const ScanTensor& s, int64_t n, int64_t h,
                                                     ScanColumns columns, const StateShape& shape,
                                                     float* state) {
  for (int64_t d = 0; d < shape.dk; ++d) {
    float* row = state + d * shape.lds;
    if (s) {
      const float* from =
          reinterpret_cast<const float*>(s.data) + n * s.b + h * s.t + d * s.h + columns.begin;
      load_row(reinterpret_cast<const char*>(from), HEED_FLOAT32, shape.dv, 1, row);
    } else {
      std::fill_n(row, shape.ldv, 0.0f);
    }
  }
}

// Row i times factor[i * step] on its way out; changes the tile.
[[maybe_unused]] static HWY_NOINLINE void store_state(float* state, const float* factor,
                                                      int64_t step, const StateShape& shape,
                                                      int64_t n, int64_t h, ScanColumns columns,
                                                      const ScanTensor& s) {
  if (!s) return;
  for (int64_t i = 0; i < shape.dk; ++i) {
    float* row = state + i * shape.lds;
    const float by = factor[i * step];
    if (by != 1) {
      for (int64_t e = 0; e < shape.dv; ++e) row[e] *= by;
    }
    float* to = reinterpret_cast<float*>(s.data) + n * s.b + h * s.t + i * s.h + columns.begin;
    store_row(row, shape.dv, reinterpret_cast<char*>(to), HEED_FLOAT32);
  }
}

HWY_INLINE const char* token_row(const ScanTensor& x, int64_t b, int64_t t, int64_t h,
                                 int64_t first = 0) {
  return x.data + (b * x.b + t * x.t + h * x.h + first) * dtype_size(x.dtype);
}
HWY_INLINE float token_scalar(const ScanTensor& x, int64_t b, int64_t t, int64_t h) {
  return reinterpret_cast<const float*>(x.data)[b * x.b + t * x.t + h * x.h];
}

// Loads rows of tokens [begin, begin + length) of one head, and has the same rows of the tokens
// that lie `ahead` of them fetched into the cache early, within [first, last): rows of one head are
// far apart in memory, further than the processor looks ahead by itself.
struct TokenReader {
  int64_t ahead = 0, first = 0, last = 0;
  int64_t batch = -1, begin = -1, head = 0, length = 0;
  mutable Fetch fetch;  // products ask for its rows as they go on

  void start(int64_t b, int64_t t, int64_t h, int64_t l) {
    batch = b, begin = t, head = h, length = l;
    fetch.clear();
  }
  void load_only(const ScanTensor& x, int64_t n, float scale, float* to, int64_t ld,
                 int64_t column = 0, const float* factors = nullptr) const {
    load_rows(token_row(x, batch, begin, head, column), x.t * dtype_size(x.dtype), x.dtype, length,
              n, scale, factors, to, ld);
  }
  void load(const ScanTensor& x, int64_t n, float scale, float* to, int64_t ld, int64_t column = 0,
            const float* factors = nullptr) {
    load_only(x, n, scale, to, ld, column, factors);
    fetch_ahead(x, n, column, false);
  }
  void fetch_ahead(const ScanTensor& x, int64_t n, int64_t column, bool write) {
    const int64_t from = std::max(begin + ahead, first);
    const int64_t count = std::min(begin + ahead + length, last) - from;
    const int64_t size = dtype_size(x.dtype);
    fetch.add(token_row(x, batch, from, head, column), x.t * size, count, n * size, write);
  }
};

// own[i] = sum_d q_id k_id bonus_d: what a read before the write sees of its own token.
[[maybe_unused]] static HWY_NOINLINE void own_reads(const float* q, const float* k,
                                                    const float* bonus, int64_t rows, int64_t ld,
                                                    float* own) {
  const DF d;
  for (int64_t i = 0; i < rows; ++i) {
    VF sum = hn::Zero(d);
    for (int64_t e = 0; e < ld; e += kLanes) {
      const VF qk = hn::Mul(hn::LoadU(d, q + i * ld + e), hn::LoadU(d, k + i * ld + e));
      sum = hn::MulAdd(qk, hn::LoadU(d, bonus + e), sum);
    }
    own[i] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

struct Rows {
  float* data;
  int64_t ld;            // floats between rows
  bool streams = false;  // stored past the caches
};

// Whether rows of whole vectors from column `first` on are stored past the caches: where a result
// is more than a core's second-level cache, whoever reads it next does not find it there anyway.
// Nothing is read for such a store, and it does not wait for a line that another core has: the
// heads of two workers share pages of every token, and what one core fetches by itself ahead of
// its rows are lines of the other.
[[maybe_unused]] static bool rows_stream(const ScanProblem& s, const ScanTensor& out, int64_t width,
                                         int64_t column) {
  constexpr int64_t kLarge = 2 << 20, kVectorBytes = kLanes * 4;  // bytes
  if (out.dtype != HEED_FLOAT32 || 4 * s.batch * s.time * s.heads * width < kLarge) return false;
  const auto first = reinterpret_cast<uintptr_t>(out.data) + static_cast<uintptr_t>(column) * 4;
  const int64_t strides = out.b | out.t | out.h;
  return first % kVectorBytes == 0 && strides * 4 % kVectorBytes == 0;
}

// One vector of outputs.
HWY_INLINE void store_output(VF x, const Rows& to, int64_t at) {
  const DF d;
  if (to.streams) {
    hn::Stream(x, d, to.data + at);
  } else {
    hn::StoreU(x, d, to.data + at);
  }
}

}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HEED_SCAN_TOKEN_INL_H_
