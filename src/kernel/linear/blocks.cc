// See blocks.h. A task takes some rows of a matrix and some rows of x; tiles of it are sixteen
// (or a vector's) rows of the matrix by up to eight of x, whose sums stay in registers.
#include "kernel/linear/blocks.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernel/linear/blocks_layout.h"
#include "kernel/parallel.h"
#include "kernel/simd_targets.h"
// Dot products of int8 are worth a target of their own here.
#define HWY_WANT_AVX3_DL
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/linear/blocks.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernel/simd/math-inl.h"

#ifndef HEED_KERNEL_LINEAR_BLOCKS_PROBLEM_H_
#define HEED_KERNEL_LINEAR_BLOCKS_PROBLEM_H_
namespace heed::kernel {
namespace {

constexpr int64_t kChunkRows = 256;  // of a matrix that a task takes at most
constexpr int64_t kChunkTokens = 64;

// What a task works with.
struct BlockTask {
  const BlockCall* call;
  const BlockProduct* product;
  RoundedRows rounded;
  int64_t n, n_end, m, m_end;
  float* gate;  // [kChunkTokens, kChunkRows]
  float* row;   // [in]
};

int64_t worker_bytes(int64_t in) {
  return (kChunkTokens * kChunkRows + in) * static_cast<int64_t>(sizeof(float)) + kWorkerGap;
}

bool any_packed(const BlockCall& call) {
  for (int64_t i = 0; i < call.count; ++i) {
    if (is_packed(call.products[i].w->type)) return true;
    if (call.products[i].gate && is_packed(call.products[i].gate->type)) return true;
  }
  return false;
}

}  // namespace
}  // namespace heed::kernel
#endif

HWY_BEFORE_NAMESPACE();
// Highway 1.0.3 names another extension where it means this one.
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86 && HWY_COMPILER_GCC_ACTUAL
#pragma GCC target("avx512vnni")
#endif
namespace heed::kernel::HWY_NAMESPACE {
namespace {

#if HEED_VECTOR_TARGET

using VI = hn::Vec<hn::RebindToSigned<DF>>;
using DB = hn::Repartition<uint8_t, DF>;
using VB = hn::Vec<DB>;

// ----------------------------------------------------------------------------------------------
// activations

HWY_INLINE VI times_radix(VI x) {
  static_assert(kRadix == 256 - 2);
  return hn::Sub(hn::ShiftLeft<8>(x), hn::ShiftLeft<1>(x));
}

// As round_row_reference().
void round_row(const float* x, int64_t in, int64_t m, const RoundedRows& to) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<int8_t, DF> dq;
  const VI magnitude = hn::Set(di, 0x7FFFFFFF);
  for (int64_t b = 0; b < in / kBlock; ++b) {
    const float* from = x + b * kBlock;
    const int64_t first = m * in + b * kBlock;
    VI bits = hn::Zero(di);  // of the largest: those of infinity and NaN are above all others
    for (int64_t k = 0; k < kBlock; k += kLanes) {
      bits = hn::Max(bits, hn::And(hn::BitCast(di, hn::LoadU(d, from + k)), magnitude));
    }
    const int32_t most_bits = hn::GetLane(hn::MaxOfLanes(di, bits));
    const float most = std::bit_cast<float>(most_bits);
    const bool finite = most_bits < 0x7F800000;
    const int64_t place = m * (in / kBlock) + b;
    int32_t count = 0;
    if (finite && most > 1e-30f) {
      const VF inverse = hn::Set(d, to.most() / most), part = hn::Set(d, 1.0f / kRadix);
      VI sum = hn::Zero(di);
      for (int64_t k = 0; k < kBlock; k += kLanes) {
        const VI number = hn::NearestInt(hn::Mul(hn::LoadU(d, from + k), inverse));
        sum = hn::Add(sum, number);
        if (to.fine) {
          const VI high = hn::NearestInt(hn::Mul(hn::ConvertTo(d, number), part));
          hn::StoreU(hn::DemoteTo(dq, high), dq, to.q + first + k);
          hn::StoreU(hn::DemoteTo(dq, hn::Sub(number, times_radix(high))), dq, to.low + first + k);
        } else {
          hn::StoreU(hn::DemoteTo(dq, number), dq, to.q + first + k);
        }
      }
      count = hn::GetLane(hn::SumOfLanes(di, sum));
    } else {
      std::memset(to.q + first, 0, kBlock);
      if (to.fine) std::memset(to.low + first, 0, kBlock);
    }
    const float scale = finite ? most / to.most() : std::numeric_limits<float>::quiet_NaN();
    to.scales[place] = scale;
    to.sums[place] = scale * static_cast<float>(count);
    to.counts[place] = count;
  }
}

// ----------------------------------------------------------------------------------------------
// interleaved rows

// sum + w x, four bytes a lane: w from 0 to 255; with `kSigned` 128 below that, which is asked for
// where kUnsignedDot is false and w has eight bits: there pairs of products must fit in 16 bits.
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
constexpr bool kUnsignedDot = true;
template <bool kSigned>
HWY_INLINE VI dot4(VI sum, VB w, VI x) {
  return VI{_mm512_dpbusd_epi32(sum.raw, w.raw, x.raw)};
}
#elif HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
constexpr bool kUnsignedDot = false;
template <bool kSigned>
HWY_INLINE VI dot4(VI sum, VB w, VI x) {
  if constexpr (kSigned) {  // |w| times x with the sign of w
    const __m512i value = _mm512_xor_si512(w.raw, _mm512_set1_epi8(-128));
    const __mmask64 negative = _mm512_movepi8_mask(value);
    x.raw = _mm512_mask_sub_epi8(x.raw, negative, _mm512_setzero_si512(), x.raw);
    w.raw = _mm512_abs_epi8(value);
  }
  const __m512i pairs = _mm512_maddubs_epi16(w.raw, x.raw);
  return VI{_mm512_add_epi32(sum.raw, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
#elif HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
constexpr bool kUnsignedDot = false;
template <bool kSigned>
HWY_INLINE VI dot4(VI sum, VB w, VI x) {
  if constexpr (kSigned) {
    const __m256i value = _mm256_xor_si256(w.raw, _mm256_set1_epi8(-128));
    x.raw = _mm256_sign_epi8(x.raw, value);
    w.raw = _mm256_abs_epi8(value);
  }
  const __m256i pairs = _mm256_maddubs_epi16(w.raw, x.raw);
  return VI{_mm256_add_epi32(sum.raw, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
#else
constexpr bool kUnsignedDot = true;
template <bool kSigned>
HWY_INLINE VI dot4(VI sum, VB w_bytes, VI x) {
  const hn::RebindToSigned<DF> di;
  const hn::RebindToUnsigned<DF> du;
  const auto w = hn::BitCast(du, w_bytes);
  const auto byte = hn::Set(du, 255);
  const auto part = [&](auto weight, VI value) HWY_ATTR {
    sum = hn::Add(sum, hn::Mul(hn::BitCast(di, weight), hn::ShiftRight<24>(value)));
  };
  part(hn::And(w, byte), hn::ShiftLeft<24>(x));
  part(hn::And(hn::ShiftRight<8>(w), byte), hn::ShiftLeft<16>(x));
  part(hn::And(hn::ShiftRight<16>(w), byte), hn::ShiftLeft<8>(x));
  part(hn::ShiftRight<24>(w), x);
  return sum;
}
#endif

// The eight vectors of a block's numbers; `part` of a group has as many rows as a vector has lanes.
template <BlockType kType>
HWY_INLINE void load_numbers(const std::byte* block, int64_t part, VB (&w)[8]) {
  constexpr PackedFormat kFormat = packed_format(kType);
  const DB d;
  const auto* data = reinterpret_cast<const uint8_t*>(block + kFormat.data + part * 4 * kLanes);
  if constexpr (kFormat.eight_bits) {
    for (int j = 0; j < 8; ++j) w[j] = hn::LoadU(d, data + j * 64);
  } else {
    const hn::Repartition<uint16_t, DB> d16;
    const VB low = hn::Set(d, 15);
    for (int j = 0; j < 4; ++j) {
      const VB both = hn::LoadU(d, data + j * 64);
      w[2 * j] = hn::And(both, low);
      w[2 * j + 1] = hn::And(hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, both))), low);
    }
  }
}

HWY_INLINE VF load_halves(const std::byte* from) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(), hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(from)));
}

// start + w q over a block.
template <bool kSigned>
HWY_INLINE VI block_dot(VI dot, const VB (&w)[8], const int8_t* q) {
  const hn::RebindToSigned<DF> di;
  for (int j = 0; j < 8; ++j) {
    int32_t four;
    std::memcpy(&four, q + 4 * j, sizeof four);
    dot = dot4<kSigned>(dot, w[j], hn::Set(di, four));
  }
  return dot;
}

// The sums of M rows of x with a part of a group.
template <BlockType kType, bool kFine, int M>
HWY_INLINE void packed_tile(const std::byte* at, int64_t part, const RoundedRows& x, int64_t in,
                            int64_t m, VF (&sums)[M]) {
  constexpr PackedFormat kFormat = packed_format(kType);
  constexpr bool kSigned = kFormat.eight_bits && !kUnsignedDot;
  const DF d;
  const hn::RebindToSigned<DF> di;
  const int64_t blocks = in / kBlock;
  for (auto& sum : sums) sum = hn::Zero(d);
  for (int64_t b = 0; b < blocks; ++b, at += kFormat.bytes) {
    VB w[8];
    load_numbers<kType>(at, part, w);
    const VF scale = load_halves(at + part * 2 * kLanes);
    for (int i = 0; i < M; ++i) {
      const int64_t place = (m + i) * blocks + b, first = place * kBlock;
      VI dot = hn::Zero(di);
      if constexpr (kFine) dot = times_radix(block_dot<kSigned>(dot, w, x.q + first));
      if constexpr (kFormat.offset > 0 && !kSigned) {
        dot = hn::Add(dot, hn::Set(di, -kFormat.offset * x.counts[place]));
      }
      dot = block_dot<kSigned>(dot, w, (kFine ? x.low : x.q) + first);
      sums[i] =
          hn::MulAdd(hn::ConvertTo(d, dot), hn::Mul(scale, hn::Set(d, x.scales[place])), sums[i]);
    }
    if constexpr (kFormat.minima) {
      const VF minimum = load_halves(at + 32 + part * 2 * kLanes);
      for (int i = 0; i < M; ++i) {
        sums[i] = hn::MulAdd(minimum, hn::Set(d, x.sums[(m + i) * blocks + b]), sums[i]);
      }
    }
  }
}

// Writes x[m] w[n] of the task's rows to y[(m - task.m) stride + n - task.n].
template <BlockType kType, bool kFine, int M>
void packed_rows(const BlockTask& t, const BlockMatrix& w, int64_t m, float* y, int64_t stride) {
  const int64_t group_bytes = w.in / kBlock * packed_format(kType).bytes;
  const DF d;
  for (int64_t n = t.n; n < t.n_end; n += kLanes) {
    const std::byte* group = w.data + n / kPackedRows * group_bytes;
    VF sums[M];
    packed_tile<kType, kFine, M>(group, n % kPackedRows / kLanes, t.rounded, w.in, m, sums);
    float* to = y + (m - t.m) * stride + n - t.n;
    for (int i = 0; i < M; ++i, to += stride) {
      if (n + kLanes <= t.n_end) {
        hn::StoreU(sums[i], d, to);
      } else {
        HWY_ALIGN float some[kLanes];
        hn::Store(sums[i], d, some);
        std::copy_n(some, t.n_end - n, to);
      }
    }
  }
}

// As many rows of x at once as registers hold.
template <class F>
HWY_INLINE void by_rows(int64_t m, int64_t end, F&& f) {
  constexpr int kMost = HWY_TARGET <= HWY_AVX3 ? 8 : 4;
  for (; m + kMost <= end; m += kMost) f(m, std::integral_constant<int, kMost>());
  if (m + 4 <= end) {
    f(m, std::integral_constant<int, 4>());
    m += 4;
  }
  if (m + 2 <= end) {
    f(m, std::integral_constant<int, 2>());
    m += 2;
  }
  if (m < end) f(m, std::integral_constant<int, 1>());
}

template <BlockType kType>
void packed_products(const BlockTask& t, const BlockMatrix& w, float* y, int64_t stride) {
  by_rows(t.m, t.m_end, [&](int64_t m, auto count) HWY_ATTR {
    constexpr int kCount = decltype(count)::value;
    if (t.rounded.fine) {
      packed_rows<kType, true, kCount>(t, w, m, y, stride);
    } else {
      packed_rows<kType, false, kCount>(t, w, m, y, stride);
    }
  });
}

// ----------------------------------------------------------------------------------------------
// rows as they are in the file

void float_row(const BlockMatrix& w, int64_t n, float* to) {
  if (w.type != BlockType::kFloat16 && w.type != BlockType::kBfloat16) {
    return unpack_rows(w, n, n + 1, to);
  }
  const DF d;
  const hn::Rebind<uint16_t, DF> d16;
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const auto* from = reinterpret_cast<const uint16_t*>(w.data + n * w.row_bytes);
  int64_t k = 0;
  for (; k + kLanes <= w.in; k += kLanes) {
    const auto bits = hn::LoadU(d16, from + k);
    const VF value = w.type == BlockType::kFloat16
                         ? hn::PromoteTo(d, hn::BitCast(dh, bits))
                         : hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
    hn::StoreU(value, d, to + k);
  }
  BlockMatrix rest = w;
  rest.data = reinterpret_cast<const std::byte*>(from + k);
  rest.in = w.in - k;
  unpack_rows(rest, 0, 1, to + k);
}

template <int M>
HWY_INLINE void float_dots(const float* x, int64_t in, const float* row, float* y, int64_t stride) {
  const DF d;
  VF sums[M];
  for (auto& sum : sums) sum = hn::Zero(d);
  int64_t k = 0;
  for (; k + kLanes <= in; k += kLanes) {
    const VF weight = hn::LoadU(d, row + k);
    for (int i = 0; i < M; ++i) {
      sums[i] = hn::MulAdd(hn::LoadU(d, x + i * in + k), weight, sums[i]);
    }
  }
  for (int i = 0; i < M; ++i) {
    float sum = hn::GetLane(hn::SumOfLanes(d, sums[i]));
    for (int64_t c = k; c < in; ++c) sum += x[i * in + c] * row[c];
    y[i * stride] = sum;
  }
}

void float_products(const BlockTask& t, const BlockMatrix& w, float* y, int64_t stride) {
  for (int64_t n = t.n; n < t.n_end; ++n) {
    float_row(w, n, t.row);
    by_rows(t.m, t.m_end, [&](int64_t m, auto count) HWY_ATTR {
      float_dots<decltype(count)::value>(t.call->x + m * w.in, w.in, t.row,
                                         y + (m - t.m) * stride + n - t.n, stride);
    });
  }
}

// ----------------------------------------------------------------------------------------------
// what follows a product

void products_of(const BlockTask& t, const BlockMatrix& w, float* y, int64_t stride) {
  switch (w.type) {
    case BlockType::kQ8_0:
      return packed_products<BlockType::kQ8_0>(t, w, y, stride);
    case BlockType::kQ4_0:
      return packed_products<BlockType::kQ4_0>(t, w, y, stride);
    case BlockType::kQ4_1:
      return packed_products<BlockType::kQ4_1>(t, w, y, stride);
    default:
      return float_products(t, w, y, stride);
  }
}

// f(vector, place in y, count of columns from n on) over the columns [n, n_end).
void finish_row(const BlockTask& t, int64_t m, float* y) {
  const BlockProduct& p = *t.product;
  const DF d;
  const float* gate = t.gate + (m - t.m) * kChunkRows;
  const float* add = p.add ? p.add + m * p.add_stride + t.n : nullptr;
  const auto finished = [&](int64_t i, auto load) HWY_ATTR {
    VF value = load(y + i);
    if (p.bias) value = hn::Add(value, load(p.bias + t.n + i));
    if (p.gate) {
      VF g = load(gate + i);
      if (p.gate_bias) g = hn::Add(g, load(p.gate_bias + t.n + i));
      value = hn::Mul(value, hn::Mul(g, sigmoid_of(g)));
    }
    return add ? hn::Add(value, load(add + i)) : value;
  };
  const int64_t count = t.n_end - t.n;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(finished(i, [&](const float* at) HWY_ATTR { return hn::LoadU(d, at); }), d, y + i);
  }
  for (; i < count; ++i) {
    y[i] = hn::GetLane(finished(i, [&](const float* at) HWY_ATTR { return hn::Set(d, *at); }));
  }
}

void block_task(const BlockTask& t) {
  const BlockProduct& p = *t.product;
  float* y = p.y + t.m * p.y_stride + t.n;
  products_of(t, *p.w, y, p.y_stride);
  if (p.gate) products_of(t, *p.gate, t.gate, kChunkRows);
  if (!p.gate && !p.bias && !p.add) return;
  for (int64_t m = t.m; m < t.m_end; ++m) finish_row(t, m, p.y + m * p.y_stride + t.n);
}

constexpr bool kReference = false;

#else

constexpr bool kReference = true;
void block_task(const BlockTask&) {}
void round_row(const float* x, int64_t in, int64_t m, const RoundedRows& to) {
  round_row_reference(x, in, m, to);
}

#endif

bool wants_reference() { return kReference; }

}  // namespace
}  // namespace heed::kernel::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel {
namespace {
HWY_EXPORT(block_task);
HWY_EXPORT(round_row);
HWY_EXPORT(wants_reference);

// Rows of a matrix that a task takes: several tasks a thread, whole groups.
int64_t chunk_rows(int64_t out, int64_t threads) {
  const int64_t share = out / (8 * threads);
  return std::clamp(share / kPackedRows * kPackedRows, kPackedRows, kChunkRows);
}

int64_t chunks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

int64_t linear_blocks_scratch(const BlockCall& call, const heed_parallel* parallel) {
  return rounded_bytes(call) + 64 + parallel_threads(parallel) * worker_bytes(call.in);
}

void linear_blocks(const BlockCall& call, std::byte* scratch, const heed_parallel* parallel) {
  if (HWY_DYNAMIC_DISPATCH(wants_reference)()) return linear_blocks_reference(call, scratch);
  const RoundedRows rounded = rounded_rows(scratch, call);
  if (any_packed(call)) {
    const auto round = HWY_DYNAMIC_DISPATCH(round_row);
    constexpr int64_t kRowsATask = 16;
    parallel_for(parallel, chunks_of(call.rows, kRowsATask), [&](int64_t i, int32_t) {
      for (int64_t m = i * kRowsATask; m < std::min(call.rows, (i + 1) * kRowsATask); ++m) {
        round(call.x + m * call.in, call.in, m, rounded);
      }
    });
  }
  std::byte* workers = scratch + (rounded_bytes(call) + 63) / 64 * 64;
  const int64_t threads = parallel_threads(parallel);
  const int64_t by_tokens = chunks_of(call.rows, kChunkTokens);
  int64_t tasks = 0;
  for (int64_t i = 0; i < call.count; ++i) {
    const int64_t out = call.products[i].w->out;
    tasks += chunks_of(out, chunk_rows(out, threads)) * by_tokens;
  }
  const auto run = HWY_DYNAMIC_DISPATCH(block_task);
  parallel_for(parallel, tasks, [&](int64_t i, int32_t worker) {
    const BlockProduct* product = call.products;
    int64_t rows = 0;
    for (;; ++product) {
      rows = chunk_rows(product->w->out, threads);
      const int64_t own = chunks_of(product->w->out, rows) * by_tokens;
      if (i < own) break;
      i -= own;
    }
    const int64_t n = i / by_tokens * rows, m = i % by_tokens * kChunkTokens;
    auto* memory = reinterpret_cast<float*>(workers + worker * worker_bytes(call.in));
    run({&call, product, rounded, n, std::min(product->w->out, n + rows), m,
         std::min(call.rows, m + kChunkTokens), memory, memory + kChunkTokens * kChunkRows});
  });
}

}  // namespace heed::kernel
#endif
