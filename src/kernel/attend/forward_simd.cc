// The forward pass of one item (rows of one unit, a range of its keys), for every instruction set.
// Groups of six rows go through S = Q K^T, the hooks, the online softmax and O += P V while their
// logits sit in the first-level cache. Many rows: tiles of keys are packed transposed, values
// copied, both shared by all rows. Few rows (decoding): keys and values are read in place, once.
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/attend/forward_simd.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernel/attend/forward.h"
#include "kernel/attend/logits-inl.h"
#include "kernel/attend/pack-inl.h"
#include "kernel/attend/tile-inl.h"
#include "kernel/attend/variants-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::attend {
namespace HWY_NAMESPACE {
#if HEED_VECTOR_TARGET

// Sums of q.k for R rows and four keys at a time, in place. `vectors` of D; a row of S is kTile
// long.
template <int R, class T>
HWY_NOINLINE void dots(const float* q, ptrdiff_t q_row, const T* k, ptrdiff_t k_stride, int count,
                       int vectors, float* s, const Ahead& ahead) {
  const Tag d;
  const hn::Repartition<uint64_t, Tag> d64;
  for (int j = 0; j < count; j += 4) {
    const T* key[4];
    for (int i = 0; i < 4; ++i) {
      key[i] = k + std::min(j + i, count - 1) * k_stride;
      prefetch_row(key[i], ahead.of(j + i), vectors);
    }
    Vec acc[R][4];
    HWY_UNROLL(8)
    for (int r = 0; r < R; ++r) {
      HWY_UNROLL(8)
      for (int i = 0; i < 4; ++i) acc[r][i] = hn::Zero(d);
    }
    for (int x = 0; x < vectors; ++x) {
      Vec row[4];
      HWY_UNROLL(8)
      for (int i = 0; i < 4; ++i) row[i] = load(key[i] + x * kLanes);
      HWY_UNROLL(8)
      for (int r = 0; r < R; ++r) {
        const Vec a = hn::LoadU(d, q + r * q_row + x * kLanes);
        HWY_UNROLL(8)
        for (int i = 0; i < 4; ++i) acc[r][i] = hn::MulAdd(a, row[i], acc[r][i]);
      }
    }
    HWY_UNROLL(8)
    for (int r = 0; r < R; ++r) {
      // Sums across lanes for four keys at once: first inside blocks of 128 bits, then over blocks.
      const Vec ab = hn::Add(hn::InterleaveLower(d, acc[r][0], acc[r][1]),
                             hn::InterleaveUpper(d, acc[r][0], acc[r][1]));
      const Vec ef = hn::Add(hn::InterleaveLower(d, acc[r][2], acc[r][3]),
                             hn::InterleaveUpper(d, acc[r][2], acc[r][3]));
      const auto ab64 = hn::BitCast(d64, ab), ef64 = hn::BitCast(d64, ef);
      const Vec sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab64, ef64)),
                               hn::BitCast(d, hn::InterleaveUpper(d64, ab64, ef64)));
      float* out = s + r * kTile + j;
      const hn::FixedTag<float, 4> d4;
      const auto four = sum_blocks(d, sums);
      if (j + 4 <= count) {
        hn::StoreU(four, d4, out);
      } else {
        HWY_ALIGN float tail[4];
        hn::Store(four, d4, tail);
        for (int i = 0; j + i < count; ++i) out[i] = tail[i];
      }
    }
  }
}

template <class T>
HWY_INLINE void dots_rows(int rows, const float* q, ptrdiff_t q_row, const T* k, ptrdiff_t k_stride,
                          int count, int vectors, float* s, const Ahead& ahead = {}) {
  constexpr int kMost = kColumns == 4 ? 4 : 2;  // 4 R accumulators
  while (rows > 0) {
    const int take = rows <= kMost ? rows : (rows == kMost + 1 ? kMost - kMost / 3 : kMost);
    if constexpr (kMost == 4) {
      if (take == 4) dots<4>(q, q_row, k, k_stride, count, vectors, s, ahead);
      if (take == 3) dots<3>(q, q_row, k, k_stride, count, vectors, s, ahead);
    }
    if (take == 2) dots<2>(q, q_row, k, k_stride, count, vectors, s, ahead);
    if (take == 1) dots<1>(q, q_row, k, k_stride, count, vectors, s, ahead);
    rows -= take;
    q += take * q_row;
    s += take * kTile;
  }
}

// O += P V where V may hold NaN or infinity in rows that some row of P hides: skips what is hidden.
HWY_NOINLINE void add_values_checked(int rows, int from, int to, const float* p, const float* v,
                                     ptrdiff_t value_pad, float* o, const float* factor) {
  for (int r = 0; r < rows; ++r) {
    float* out = o + r * value_pad;
    for (ptrdiff_t i = 0; i < value_pad; ++i) out[i] *= factor[r];
    for (int j = from; j < to; ++j) {
      const float x = p[r * kTile + j];
      if (x == 0) continue;
      for (ptrdiff_t i = 0; i < value_pad; ++i) out[i] += x * v[j * value_pad + i];
    }
  }
}

// Where row `j` of a run and those behind it find the rows to ask for early; `base` and `stride`
// are k or v of a segment.
HWY_INLINE Ahead ahead_of(const AttendJob& job, const TileRun& run, int64_t j, ptrdiff_t row_bytes,
                          const void* const Segment::*base, ptrdiff_t stride_bytes) {
  const Segment& segment = *run.segment;
  const int64_t rows = std::clamp<int64_t>(kAheadBytes / row_bytes, 2, 64);
  const int64_t left = segment.length - (run.key + j);
  Ahead ahead;
  ahead.near = rows * stride_bytes;
  ahead.rows = left - rows;
  if (run.segment + 1 < job.segments + job.segment_count) {
    const auto end = reinterpret_cast<intptr_t>(segment.*base) + segment.length * stride_bytes;
    ahead.far = ahead.near + (reinterpret_cast<intptr_t>(run.segment[1].*base) - end);
  }
  return ahead;
}

template <class T>
struct Forward {
  const AttendTable& table;
  const AttendJob& job;
  const ForwardUnit& unit;
  const ForwardScratch& scratch;
  int rows;
  ptrdiff_t key_pad, value_pad;
  bool direct, in_place, bias;
  int64_t base;  // position of the first query
  static constexpr ptrdiff_t kSize = sizeof(T);

  Forward(const AttendTable& table, const ForwardUnit& unit, const ForwardScratch& scratch)
      : table(table), job(table.jobs[unit.job]), unit(unit), scratch(scratch) {
    rows = static_cast<int>((unit.n1 - unit.n0) * table.group);
    key_pad = pad16(table.head_dim);
    value_pad = pad16(table.value_dim);
    direct = rows <= kDirectRows;
    in_place = table.head_dim % kLanes == 0 && table.value_dim % kLanes == 0;
    bias = has_bias(job);
    base = job.q_position + unit.n0;
  }

  void start() {
    const float factor = query_factor(table);
    for (int r = 0; r < rows; ++r) {
      const int64_t offset =
          (unit.n0 + r / table.group) * job.q_stride + (r % table.group) * job.q_head_stride;
      if (direct) {
        float* out = scratch.q + r * key_pad;
        load_row(job.q, table.q_dtype, offset, table.head_dim, factor, out, 1);
        for (ptrdiff_t i = table.head_dim; i < key_pad; ++i) out[i] = 0;
      } else {
        load_row(job.q, table.q_dtype, offset, table.head_dim, factor,
                 interleaved_row(scratch.q, r, key_pad), kGroup);
      }
    }
    std::fill(scratch.parts, scratch.parts + rows, SoftmaxPart<float>{});
    std::fill(scratch.o, scratch.o + rows * value_pad, 0.0f);
  }

  void logits_in_place(const Tile& tile, const TileView& view, const RowGroup& group, int r0) {
    for (int i = 0; i < tile.runs; ++i) {
      const int a = std::max(tile.run[i].first, view.begin);
      const int b = std::min(tile.run[i].first + tile.run[i].count, view.end);
      if (a >= b) continue;
      dots_rows(group.rows, scratch.q + r0 * key_pad, key_pad,
                key_row<T>(tile.run[i], a - tile.run[i].first), tile.run[i].segment->k_stride,
                b - a, table.head_dim / kLanes, scratch.s + a,
                ahead_of(job, tile.run[i], a - tile.run[i].first, table.head_dim * kSize,
                         &Segment::k, tile.run[i].segment->k_stride * kSize));
    }
  }

  void values_in_place(const Tile& tile, const TileView& view, const RowGroup& group, int r0,
                       const float* factor) {
    static constexpr float kOne[kGroup] = {1, 1, 1, 1, 1, 1};
    for (int i = 0; i < tile.runs; ++i) {
      const int a = std::max(tile.run[i].first, view.begin);
      const int b = std::min(tile.run[i].first + tile.run[i].count, view.end);
      if (a >= b) continue;
      multiply<kTile, Into::kScale, true>(
          group.rows, scratch.s + a, 1, value_row<T>(tile.run[i], a - tile.run[i].first),
          tile.run[i].segment->v_stride, kPanel, b - a, scratch.o + r0 * value_pad, value_pad,
          table.value_dim / kLanes, factor,
          ahead_of(job, tile.run[i], a - tile.run[i].first, table.value_dim * kSize, &Segment::v,
                   tile.run[i].segment->v_stride * kSize));
      factor = kOne;
    }
  }

  void tile_step(const Tile& tile) {
    const bool whole = fully_visible(job, tile.extent, base, job.q_position + unit.n1 - 1);
    if (!whole || needs_positions(job)) {
      tile_positions(job, tile, base, scratch.index, scratch.position);
    }
    if (!whole && job.any) tile_listed(tile, scratch.listed);
    if (bias) tile_bias(tile, table.group, scratch.bias);
    const Hooks hooks{
        table,         job,           base, bias ? scratch.bias : nullptr, scratch.position,
        scratch.index, scratch.listed};
    const bool read_in_place = direct && in_place && !tile.packed_keys && !tile.packed_values;
    bool finite = true;
    if (!direct) {
      pack_keys<T>(tile, table.head_dim, scratch.rows, scratch.k);
      finite = copy_rows<T>(tile, kValues, table.value_dim, scratch.v);
    } else if (!read_in_place) {
      copy_rows<T>(tile, kKeys, table.head_dim, scratch.k);
      finite = copy_rows<T>(tile, kValues, table.value_dim, scratch.v);
    } else if (!whole || bias) {
      finite = copy_rows<T>(tile, kValues, table.value_dim, scratch.v);
    }
    for (int r0 = 0; r0 < rows; r0 += kGroup) {
      const RowGroup group = row_group(r0, std::min(kGroup, rows - r0), table.group);
      const TileView view =
          whole ? TileView{0, tile.n, false}
                : tile_view(job, tile, scratch.index, base, base + group.position[0],
                            base + group.position[group.rows - 1]);
      if (view.begin >= view.end) continue;
      const int from = (direct ? view.begin / kLanes * kLanes : view.begin / kPanel * kPanel);
      const int to = (view.end + kLanes - 1) / kLanes * kLanes;
      if (read_in_place) {
        for (int r = 0; r < group.rows; ++r) {  // lanes that no key is written to
          hn::StoreU(hn::Zero(Tag()), Tag(), scratch.s + r * kTile + from);
          hn::StoreU(hn::Zero(Tag()), Tag(), scratch.s + r * kTile + to - kLanes);
        }
        logits_in_place(tile, view, group, r0);
      } else if (direct) {
        dots_rows(group.rows, scratch.q + r0 * key_pad, key_pad, scratch.k + from * key_pad,
                  key_pad, view.end - from, static_cast<int>(key_pad / kLanes), scratch.s + from);
      } else {
        multiply<1, Into::kSet>(group.rows, scratch.q + r0 * key_pad, kGroup,
                                scratch.k + static_cast<ptrdiff_t>(from) * table.head_dim, kPanel,
                                static_cast<ptrdiff_t>(kPanel) * table.head_dim, table.head_dim,
                                scratch.s + from, kTile, (to - from) / kLanes, nullptr);
      }
      finish_logits(hooks, group, view.masked, from, to, view.end, scratch.s, nullptr);
      float factor[kGroup];
      with_variant(table.weight, [&](auto variant) HWY_ATTR {
        variant.weigh(hooks, group, from, to, scratch.s, scratch.parts + r0, factor);
      });
      float* o = scratch.o + r0 * value_pad;
      if (!finite && (view.masked || bias)) {
        add_values_checked(group.rows, from, view.end, scratch.s, scratch.v, value_pad, o, factor);
      } else if (read_in_place) {
        values_in_place(tile, view, group, r0, factor);
      } else {
        const int vectors = static_cast<int>((table.value_dim + kLanes - 1) / kLanes);
        multiply<kTile, Into::kScale>(group.rows, scratch.s + from, 1, scratch.v + from * value_pad,
                                      value_pad, kPanel, view.end - from, o, value_pad, vectors,
                                      factor);
      }
    }
  }
};

template <class T>
void run_item(const AttendTable& table, const ForwardUnit& unit, const ForwardItem& item,
              const ForwardScratch& scratch) {
  Forward<T> forward(table, unit, scratch);
  forward.start();
  Tile tile;
  for_each_tile(table, forward.job, unit.n0, unit.n1, item.key_begin, item.key_end, tile,
                [&](const Tile& t) { forward.tile_step(t); });
}

void ForwardItemTarget(const AttendTable& table, const ForwardUnit& unit, const ForwardItem& item,
                       const ForwardScratch& scratch) {
  switch (table.kv_dtype) {
    case HEED_BFLOAT16:
      run_item<hwy::bfloat16_t>(table, unit, item, scratch);
      break;
    case HEED_FLOAT16:
      run_item<hwy::float16_t>(table, unit, item, scratch);
      break;
    default:
      run_item<float>(table, unit, item, scratch);
  }
}

bool HasVectors() { return true; }

#else

void ForwardItemTarget(const AttendTable&, const ForwardUnit&, const ForwardItem&,
                       const ForwardScratch&) {}

bool HasVectors() { return false; }

#endif  // HEED_VECTOR_TARGET
}  // namespace HWY_NAMESPACE
}  // namespace heed::kernel::attend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel::attend {

HWY_EXPORT(ForwardItemTarget);
HWY_EXPORT(HasVectors);

bool has_vectors() { return HWY_DYNAMIC_DISPATCH(HasVectors)(); }

void forward_item(const AttendTable& table, const ForwardUnit& unit, const ForwardItem& item,
                  const ForwardScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(ForwardItemTarget)(table, unit, item, scratch);
}

}  // namespace heed::kernel::attend
#endif  // HWY_ONCE
