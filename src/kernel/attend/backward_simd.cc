// The backward pass of one unit of rows, for every instruction set. Weights are computed again from
// lse, a tile of keys at a time (FlashAttention, arXiv 2205.14135, Algorithm 4):
//
//   P = exp(X - lse)             dP = dO V^T          dX = P (dP - delta),   delta = sum dO O
//   dV += P^T dO                 dS = cap'(X) dX scale
//   dQ += dS K                   dK += dS^T Q
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

  void start() {
    const bool softmax = table.weight == Weight::kSoftmax;
    std::fill(scratch.q_rows, scratch.q_rows + rows * key_pad, 0.0f);
    std::fill(scratch.grad_rows, scratch.grad_rows + rows * value_pad, 0.0f);
    std::fill(scratch.grad_q, scratch.grad_q + rows * key_pad, 0.0f);
    for (int r = 0; r < rows; ++r) {
      const int64_t q = query(r) * job.q_stride + head(r) * job.q_head_stride;
      const int64_t o = query(r) * job.out_stride + head(r) * job.out_head_stride;
      float* grad_row = scratch.grad_rows + r * value_pad;
      load_row(job.q, table.q_dtype, q, table.head_dim, query_factor(table),
               interleaved_row(scratch.q_columns, r, key_pad), kGroup);
      load_row(job.q, table.q_dtype, q, table.head_dim, 1, scratch.q_rows + r * key_pad, 1);
      load_row(grad.grad_out, table.q_dtype, o, table.value_dim, 1,
               interleaved_row(scratch.grad_columns, r, value_pad), kGroup);
      load_row(grad.grad_out, table.q_dtype, o, table.value_dim, 1, grad_row, 1);
      scratch.lse[r] = scratch.delta[r] = 0;
      if (!softmax) continue;
      float out[256];
      load_row(job.out, table.q_dtype, o, table.value_dim, 1, out, 1);
      double delta = 0;
      for (int d = 0; d < table.value_dim; ++d) {
        delta += static_cast<double>(out[d]) * static_cast<double>(grad_row[d]);
      }
      scratch.delta[r] = static_cast<float>(delta);
      const float lse = job.lse[query(r) * job.lse_stride + head(r) * job.lse_head_stride];
      scratch.lse[r] = lse == kHidden ? 0.0f : lse * kLog2E;
    }
  }

  // Logits (in p) and dP of one group to P, dX and dS, in [from, to).
  void weigh(const Tile& tile, const RowGroup& group, int r0, int from, int to) {
    const Tag d;
    const bool softmax = table.weight == Weight::kSoftmax;
    const bool cap = table.soft_cap > 0;
    const Vec one = hn::Set(d, 1.0f);
    const Vec scale = hn::Set(d, table.scale);
    const Vec shift = hn::Set(d, job.sigmoid_bias * kLog2E);
    for (int r = 0; r < group.rows; ++r) {
      float* p_row = scratch.p + (r0 + r) * kTile;
      float* ds_row = scratch.ds + (r0 + r) * kTile;
      float* dp_row = scratch.dp + r * kTile;
      const Vec lse = hn::Set(d, scratch.lse[r0 + r]);
      const Vec delta = hn::Set(d, scratch.delta[r0 + r]);
      const Vec at = hn::Set(d, static_cast<float>(group.position[r]));
      Vec slope = hn::Zero(d);
      for (int j = from; j < to; j += kLanes) {
        const Vec x = hn::LoadU(d, p_row + j), dp = hn::LoadU(d, dp_row + j);
        Vec p, dx;
        if (softmax) {
          p = exp2_vec(hn::Min(hn::Set(d, 126.0f), hn::Sub(x, lse)));
          dx = hn::Mul(p, hn::Sub(dp, delta));
        } else {
          p = sigmoid_vec(x, shift);
          dx = hn::Mul(hn::Mul(p, hn::Sub(one, p)), dp);
        }
        // A hidden key may hold NaN, and 0 NaN is NaN.
        dx = hn::IfThenZeroElse(hn::Eq(p, hn::Zero(d)), dx);
        hn::StoreU(p, d, p_row + j);
        if (bias) hn::StoreU(dx, d, dp_row + j);
        if (job.slopes) {
          slope = hn::MulAdd(dx, hn::Abs(hn::Sub(at, hn::LoadU(d, scratch.position + j))), slope);
        }
        Vec ds = hn::Mul(dx, scale);
        if (cap) ds = hn::Mul(ds, hn::LoadU(d, scratch.cap + r * kTile + j));
        hn::StoreU(ds, d, ds_row + j);
      }
      if (job.slopes) sums.slope[group.head[r]] -= hn::GetLane(hn::SumOfLanes(d, slope));
      if (bias) add_bias(tile, group.head[r], dp_row, from, to);
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
    const bool whole = fully_visible(job, tile, base, job.q_position + unit.n1 - 1);
    if (!whole || job.slopes) tile_positions(tile, base, scratch.index, scratch.position);
    if (bias) tile_bias(tile, table.group, scratch.bias);
    pack_keys<T>(tile, table.head_dim, scratch.k_columns);
    pack_values<T>(tile, table.value_dim, scratch.v_columns);
    if (!copy_keys<T>(tile, table.head_dim, scratch.k_rows)) {
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
      finish_logits(table, job, group, base, bias ? scratch.bias : nullptr, scratch.position,
                    scratch.index, view.masked, from, to, view.end, p, scratch.cap);
      weigh(tile, group, r0, from, to);
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
    if (!grad.grad_q) return;
    for (int r = 0; r < rows; ++r) {
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
                       has_bias(job),
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
