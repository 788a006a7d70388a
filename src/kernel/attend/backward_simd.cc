// The backward pass of one unit of rows, for every instruction set. Weights are computed again from
// lse, a tile of keys at a time (FlashAttention, arXiv 2205.14135, Algorithm 4):
//
//   P = exp(X - lse)             dP = dO V^T          dX = P (dP - delta),   delta = sum dO O -
//   dlse dV += P^T dO                 dS = cap'(X) dX scale dQ += dS K                   dK += dS^T
//   Q
//
// (softmax; what other weights do to the first line is in variants-inl.h).
#include "kernel/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/attend/backward_simd.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernel/attend/backward.h"
#include "kernel/attend/logits-inl.h"
#include "kernel/attend/pack-inl.h"
#include "kernel/attend/tile-inl.h"
#include "kernel/attend/variants-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed::kernel::attend {
namespace HWY_NAMESPACE {
#if HEED_VECTOR_TARGET

inline constexpr float kOnes[kGroup] = {1, 1, 1, 1, 1, 1};

// C[j] += sum_r a[r * kTile + j] b[r * pad], for `count` keys j and `depth` rows r.
HWY_INLINE void add_transposed(const float* a, int count, const float* b, ptrdiff_t pad, int depth,
                               float* c) {
  for (int j = 0; j < count; j += kGroup) {
    multiply<1, Into::kScale>(std::min(kGroup, count - j), a + j, kTile, b, pad, kPanel, depth,
                              c + j * pad, pad, static_cast<int>(pad / kLanes), kOnes);
  }
}

template <class T>
struct Backward {
  const AttendTable& table;
  const AttendJob& job;
  const AttendGradJob& grad;
  const ForwardUnit& unit;
  const int64_t* first_row;
  int64_t keys;
  const BackwardSums& sums;
  const BackwardScratch& scratch;
  int rows;
  ptrdiff_t key_pad, value_pad;
  bool bias;
  int64_t base;

  int64_t query(int r) const { return unit.n0 + r / table.group; }
  int32_t head(int r) const { return r % table.group; }

  Hooks hooks() const {
    return {table,         job,           base, bias ? scratch.bias : nullptr, scratch.position,
            scratch.index, scratch.listed};
  }

  void start() {
    const bool softmax = normalised(table.weight);
    std::fill(scratch.q_rows, scratch.q_rows + rows * key_pad, 0.0f);
    std::fill(scratch.grad_rows, scratch.grad_rows + rows * value_pad, 0.0f);
    std::fill(scratch.grad_q, scratch.grad_q + rows * key_pad, 0.0f);
    for (int r = 0; r < rows; ++r) {
      const int64_t q = query(r) * job.q_stride + head(r) * job.q_head_stride;
      const int64_t o = query(r) * job.out_stride + head(r) * job.out_head_stride;
      const int64_t go = query(r) * grad.grad_out_stride + head(r) * grad.grad_out_head_stride;
      float* grad_row = scratch.grad_rows + r * value_pad;
      load_row(job.q, table.q_dtype, q, table.head_dim, query_factor(table),
               interleaved_row(scratch.q_columns, r, key_pad), kGroup);
      load_row(job.q, table.q_dtype, q, table.head_dim, 1, scratch.q_rows + r * key_pad, 1);
      load_row(grad.grad_out, table.q_dtype, go, table.value_dim, 1,
               interleaved_row(scratch.grad_columns, r, value_pad), kGroup);
      load_row(grad.grad_out, table.q_dtype, go, table.value_dim, 1, grad_row, 1);
      scratch.lse[r] = scratch.delta[r] = scratch.row_sum[r] = 0;
      if (!softmax) continue;
      load_row(job.out, table.q_dtype, o, table.value_dim, 1, scratch.out, 1);
      double delta = 0;
      for (int d = 0; d < table.value_dim; ++d) {
        delta += static_cast<double>(scratch.out[d]) * static_cast<double>(grad_row[d]);
      }
      const int64_t at = query(r) * job.lse_stride + head(r) * job.lse_head_stride;
      const float lse = job.lse[at];
      if (grad.grad_lse && lse != kHidden) {
        delta -= static_cast<double>(
            grad.grad_lse[query(r) * grad.grad_lse_stride + head(r) * grad.grad_lse_head_stride]);
      }
      scratch.delta[r] = static_cast<float>(delta);
      scratch.lse[r] = lse == kHidden ? 0.0f : lse * kLog2E;
    }
  }

  // Logits (in p) and dP of one group to P, dX and dS, in [from, to).
  template <class Variant>
  HWY_NOINLINE void weigh(const Tile& tile, const RowGroup& group, int r0, int from, int to) {
    const Tag d;
    const Hooks of_tile = hooks();
    const bool cap = table.soft_cap > 0;
    const bool keep = bias || job.relative_bias;
    const Vec scale = hn::Set(d, table.scale);
    for (int r = 0; r < group.rows; ++r) {
      float* p_row = scratch.p + (r0 + r) * kTile;
      float* ds_row = scratch.ds + (r0 + r) * kTile;
      float* dp_row = scratch.dp + r * kTile;
      const RowGradient row{of_tile,
                            group,
                            r,
                            hn::Set(d, scratch.lse[r0 + r]),
                            hn::Set(d, scratch.delta[r0 + r]),
                            hn::Set(d, job.sigmoid_bias * kLog2E)};
      if (job.relative_scale) add_scale_gradient(tile, row, r0, from, to);
      const Vec at = hn::Set(d, static_cast<float>(group.position[r]));
      Vec slope = hn::Zero(d), sum = hn::Zero(d);
      for (int j = from; j < to; j += kLanes) {
        const auto [p, dx] =
            Variant::gradient(row, j, hn::LoadU(d, p_row + j), hn::LoadU(d, dp_row + j));
        hn::StoreU(p, d, p_row + j);
        if (keep) hn::StoreU(dx, d, dp_row + j);
        if (job.slopes) {
          slope = hn::MulAdd(dx, hn::Abs(hn::Sub(at, hn::LoadU(d, scratch.position + j))), slope);
        }
        if (job.q_bias) sum = hn::Add(sum, dx);
        Vec ds = hn::Mul(dx, scale);
        if (cap) ds = hn::Mul(ds, hn::LoadU(d, scratch.cap + r * kTile + j));
        hn::StoreU(ds, d, ds_row + j);
      }
      if (job.slopes) sums.slope[group.head[r]] -= hn::GetLane(hn::SumOfLanes(d, slope));
      if (job.q_bias) scratch.row_sum[r0 + r] += hn::GetLane(hn::SumOfLanes(d, sum));
      if (bias) add_bias(tile, group.head[r], dp_row, from, to);
      if (job.relative_bias) add_by_distance(tile, group, r, dp_row, from, to, sums.relative_bias);
    }
  }

  // dC = p dP of one row.
  HWY_NOINLINE void add_scale_gradient(const Tile& tile, const RowGradient& row, int r0, int from,
                                       int to) {
    const Tag d;
    HWY_ALIGN float dc[kTile];
    for (int j = from; j < to; j += kLanes) {
      const Vec dp = hn::LoadU(d, scratch.dp + row.r * kTile + j);
      const Vec p =
          Softmax::gradient(row, j, hn::LoadU(d, scratch.p + (r0 + row.r) * kTile + j), dp).weight;
      hn::StoreU(hn::IfThenZeroElse(hn::Eq(p, hn::Zero(d)), hn::Mul(p, dp)), d, dc + j);
    }
    add_by_distance(tile, row.rows, row.r, dc, from, to, sums.relative_scale);
  }

  // Adds what the keys of a tile give to the entries of their distances.
  void add_by_distance(const Tile& tile, const RowGroup& group, int r, const float* x, int from,
                       int to, float* table_sums) {
    const int64_t row = table_row(job);
    const int64_t at = base + group.position[r];
    for (int i = 0; i < tile.runs; ++i) {
      const TileRun& run = tile.run[i];
      // Entry of the tile's column 0, were it of this run.
      const int64_t first = job.reach - 1 + run.segment->position + run.key - run.first - at;
      const int64_t begin = std::max<int64_t>({from, run.first, -first});
      const int64_t end = std::min<int64_t>({to, run.first + run.count, row - first});
      float* out = table_sums + group.head[r] * row + first;
      for (int64_t j = begin; j < end; ++j) out[j] += x[j];
    }
  }

  void add_bias(const Tile& tile, int32_t g, const float* dx, int from, int to) {
    for (int i = 0; i < tile.runs; ++i) {
      const TileRun& run = tile.run[i];
      float* out = sums.bias + g * keys + sum_row(run) - run.first;
      const int end = std::min(to, run.first + run.count);
      for (int j = std::max(from, run.first); j < end; ++j) out[j] += dx[j];
    }
  }

  int64_t sum_row(const TileRun& run) const {
    return first_row[run.segment - job.segments] + run.key;
  }

  void tile_step(const Tile& tile) {
    const bool whole = fully_visible(job, tile.extent, base, job.q_position + unit.n1 - 1);
    if (!whole || needs_positions(job)) {
      tile_positions(job, tile, base, scratch.index, scratch.position);
    }
    if (!whole && job.any) tile_listed(tile, scratch.listed);
    if (bias) tile_bias(tile, table.group, scratch.bias);
    pack_keys<T>(tile, table.head_dim, nullptr, scratch.k_columns);
    pack_values<T>(tile, table.value_dim, scratch.v_columns);
    if (!copy_rows<T>(tile, kKeys, table.head_dim, scratch.k_rows)) {
      // Rows that see such a key have NaN weights anyway; the others must not notice.
      for (ptrdiff_t i = 0; i < tile.n * key_pad; ++i) {
        if (!(std::abs(scratch.k_rows[i]) <= std::numeric_limits<float>::max())) {
          scratch.k_rows[i] = 0;
        }
      }
    }
    const int key_vectors = static_cast<int>(key_pad / kLanes);
    int first = rows;  // rows before see nothing of this tile
    for (int r0 = 0; r0 < rows; r0 += kGroup) {
      const RowGroup group = row_group(r0, std::min(kGroup, rows - r0), table.group);
      const TileView view =
          whole ? TileView{0, tile.n, false}
                : tile_view(job, tile, scratch.index, base, base + group.position[0],
                            base + group.position[group.rows - 1]);
      float* p = scratch.p + r0 * kTile;
      float* ds = scratch.ds + r0 * kTile;
      if (view.begin > 0 || view.end < kTile) {
        std::fill(p, p + group.rows * kTile, 0.0f);
        std::fill(ds, ds + group.rows * kTile, 0.0f);
      }
      if (view.begin >= view.end) continue;
      first = std::min(first, r0);
      const int from = view.begin / kPanel * kPanel;
      const int to = (view.end + kLanes - 1) / kLanes * kLanes;
      const auto product = [&](const float* rows_columns, ptrdiff_t pad, const float* columns,
                               int dim, float* out) {
        multiply<1, Into::kSet>(group.rows, rows_columns + r0 * pad, kGroup,
                                columns + static_cast<ptrdiff_t>(from) * dim, kPanel,
                                static_cast<ptrdiff_t>(kPanel) * dim, dim, out + from, kTile,
                                (to - from) / kLanes, nullptr);
      };
      product(scratch.q_columns, key_pad, scratch.k_columns, table.head_dim, p);
      product(scratch.grad_columns, value_pad, scratch.v_columns, table.value_dim, scratch.dp);
      finish_logits(hooks(), group, view.masked, from, to, view.end, p, scratch.cap);
      with_variant(table.weight, [&](auto variant) HWY_ATTR {
        weigh<decltype(variant)>(tile, group, r0, from, to);
      });
      multiply<kTile, Into::kScale>(group.rows, ds + from, 1, scratch.k_rows + from * key_pad,
                                    key_pad, kPanel, view.end - from, scratch.grad_q + r0 * key_pad,
                                    key_pad, key_vectors, kOnes);
    }
    if (first >= rows) return;
    for (int i = 0; i < tile.runs; ++i) {
      const TileRun& run = tile.run[i];
      add_transposed(scratch.p + first * kTile + run.first, run.count,
                     scratch.grad_rows + first * value_pad, value_pad, rows - first,
                     sums.v + sum_row(run) * value_pad);
      add_transposed(scratch.ds + first * kTile + run.first, run.count,
                     scratch.q_rows + first * key_pad, key_pad, rows - first,
                     sums.k + sum_row(run) * key_pad);
    }
  }

  void finish() {
    for (int r = 0; r < rows; ++r) {
      if (grad.grad_q_bias) {
        grad.grad_q_bias[query(r) * grad.grad_q_bias_stride +
                         head(r) * grad.grad_q_bias_head_stride] += scratch.row_sum[r];
      }
      if (!grad.grad_q) continue;
      const float* from = scratch.grad_q + r * key_pad;
      float* to = grad.grad_q + query(r) * grad.grad_q_stride + head(r) * grad.grad_q_head_stride;
      for (int d = 0; d < table.head_dim; ++d) to[d] += from[d];
    }
  }
};

template <class T>
void run_unit(const AttendTable& table, const AttendGradJob& grad, const ForwardUnit& unit,
              const int64_t* first_row, int64_t keys, const BackwardSums& sums,
              const BackwardScratch& scratch) {
  const AttendJob& job = table.jobs[unit.job];
  Backward<T> backward{table,
                       job,
                       grad,
                       unit,
                       first_row,
                       keys,
                       sums,
                       scratch,
                       static_cast<int>((unit.n1 - unit.n0) * table.group),
                       pad16(table.head_dim),
                       pad16(table.value_dim),
                       has_bias(job) || grad.grad_log_weight,
                       job.q_position + unit.n0};
  backward.start();
  Tile tile;
  for_each_tile(table, job, unit.n0, unit.n1, 0, unit.keys, tile,
                [&](const Tile& t) { backward.tile_step(t); });
  backward.finish();
}

void BackwardUnitTarget(const AttendTable& table, const AttendGradJob& grad,
                        const ForwardUnit& unit, const int64_t* first_row, int64_t keys,
                        const BackwardSums& sums, const BackwardScratch& scratch) {
  switch (table.kv_dtype) {
    case HEED_BFLOAT16:
      return run_unit<hwy::bfloat16_t>(table, grad, unit, first_row, keys, sums, scratch);
    case HEED_FLOAT16:
      return run_unit<hwy::float16_t>(table, grad, unit, first_row, keys, sums, scratch);
    default:
      return run_unit<float>(table, grad, unit, first_row, keys, sums, scratch);
  }
}

#else

void BackwardUnitTarget(const AttendTable&, const AttendGradJob&, const ForwardUnit&,
                        const int64_t*, int64_t, const BackwardSums&, const BackwardScratch&) {}

#endif  // HEED_VECTOR_TARGET
}  // namespace HWY_NAMESPACE
}  // namespace heed::kernel::attend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed::kernel::attend {

HWY_EXPORT(BackwardUnitTarget);

void backward_unit(const AttendTable& table, const AttendGradJob& grad, const ForwardUnit& unit,
                   const int64_t* first_row, int64_t keys, const BackwardSums& sums,
                   const BackwardScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(BackwardUnitTarget)
  (table, grad, unit, first_row, keys, sums, scratch);
}

}  // namespace heed::kernel::attend
#endif  // HWY_ONCE
